"""Local views from the true boxes of objects, for the paper's study of where to look (Figure 3).

    python -m experiments.object_boxes around data/around.csv

then, in params.yaml, `cam_boxes: {views: file, boxes: data/around.csv}`. This uses labels, so the
result is no longer annotation-free: it says how good views could be. Nine views an image, as in the
paper; how it draws them is not published, and is this project's own.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from defusedxml import ElementTree

from stages.artifacts import INDEX
from stages.runtime.errors import UserError, reason
from stages.runtime.params_file import PARAMS_FILE, parse_params, read_yaml
from stages.sources.box_table import EDGES, box_table
from stages.sources.coco import SPLITS, read_annotations
from stages.storage.index import usable
from stages.storage.tables import read_table

VIEWS = 9
# of a box that is used again, where an image has fewer than nine
GROWTH = np.array([1.0, 1.25, 0.8, 1.5, 0.65, 1.75, 0.55, 2.0, 0.45])


class Kind(StrEnum):
    """exact: the objects' boxes, and resized ones up to nine; around: grown at random."""

    exact = "exact"
    around = "around"


def main(
    kind: Annotated[Kind, typer.Argument(help="The boxes themselves, or random ones around them.")],
    output: Annotated[Path, typer.Argument(help="The CSV to write.")],
    objects: Annotated[
        Path | None,
        typer.Option(help="Of a folder: a CSV of image_id, class, x0, y0, x1, y1, one an object."),
    ] = None,
) -> None:
    """Write nine views of every training image that has an object with a box."""
    try:
        params = parse_params(read_yaml(PARAMS_FILE))
        rows = usable(read_table(INDEX)[0], "train")
        if objects is not None:
            found = box_table(str(objects))
        elif params.source.kind.startswith("voc"):
            root = Path(params.source.root) / f"VOC{params.source.kind[3:]}"
            found = of_voc(root / "Annotations", list(rows["image_id"]))
        elif params.source.kind == "coco2014":
            found = of_coco(Path(params.source.root) / "annotations")
        else:
            raise UserError(f"{params.source.kind} knows no boxes: give --objects")
        views = around_objects(found, rows, kind, np.random.default_rng(params.seed))
    except UserError as error:
        typer.echo(f"object_boxes: {error}", err=True)
        raise typer.Exit(1) from None
    views.to_csv(output, index=False, lineterminator="\n")
    print(f"object_boxes: {len(views)} views of {views['image_id'].nunique()} images in {output}")


def of_voc(folder: Path, ids: list[str]) -> pd.DataFrame:
    """The boxes of the annotated objects that are not difficult; VOC counts pixels from 1."""
    found = []
    for image_id in ids:
        path = folder / f"{image_id}.xml"
        try:
            for item in ElementTree.parse(path).iter("object"):
                if item.findtext("difficult") != "1":
                    corners = ("xmin", "ymin", "xmax", "ymax")
                    x0, y0, x1, y1 = (round(float(item.findtext(f"bndbox/{c}"))) for c in corners)
                    found.append([image_id, item.findtext("name"), x0 - 1, y0 - 1, x1, y1])
        except (OSError, ElementTree.ParseError, TypeError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from None
    return pd.DataFrame(found, columns=["image_id", "class", *EDGES])


def of_coco(folder: Path) -> pd.DataFrame:
    """The boxes of all annotations of the training images, in whole pixels."""
    path = folder / f"instances_{SPLITS['train']}.json"
    known = read_annotations(path, "source.root")
    names = {image["id"]: f"{SPLITS['train']}/{image['file_name']}" for image in known.images}
    found = []
    for item in json.loads(path.read_bytes())["annotations"]:
        if len(item.get("bbox", ())) != 4:
            raise UserError(f"{path}: an annotation of image {item['image_id']} has no box")
        x, y, width, height = item["bbox"]
        edges = [int(x), int(y), int(np.ceil(x + width)), int(np.ceil(y + height))]
        found.append([names[item["image_id"]], known.categories[item["category_id"]], *edges])
    return pd.DataFrame(found, columns=["image_id", "class", *EDGES])


def around_objects(
    objects: pd.DataFrame, rows: pd.DataFrame, kind: Kind, rng: np.random.Generator
) -> pd.DataFrame:
    """Nine views of each image in `rows` that has objects; whole pixels inside the image."""
    sizes = rows.set_index("image_id")[["width", "height"]]
    tables = []
    for image_id, own in objects[objects["image_id"].isin(sizes.index)].groupby("image_id"):
        width, height = sizes.loc[image_id]
        sides = np.array([width, height, width, height], float)
        boxes = own[EDGES].to_numpy(float) / sides
        if kind is Kind.exact:
            turn = np.arange(VIEWS)
            chosen = turn % len(boxes)
            growth = GROWTH[turn // len(boxes)]
            centre = (boxes[chosen, :2] + boxes[chosen, 2:]) / 2
            half = (boxes[chosen, 2:] - boxes[chosen, :2]) / 2 * growth[:, None]
            views = np.hstack([centre - half, centre + half])
        else:
            chosen = rng.integers(0, len(boxes), VIEWS)
            views = boxes[chosen] + rng.uniform(0, 0.125, (VIEWS, 4)) * [-1, -1, 1, 1]
        pixels = np.clip(views, 0, 1) * sides
        tiny = 1e-6  # what was computed as 9.9999999 pixels is 10
        low = np.minimum(np.floor(pixels[:, :2] + tiny), sides[:2] - 1)
        high = np.maximum(np.ceil(pixels[:, 2:] - tiny), low + 1)
        table = pd.DataFrame(np.hstack([low, high]).astype(int), columns=EDGES)
        table.insert(0, "image_id", image_id)
        table["class"] = own["class"].to_numpy()[chosen]
        tables.append(table)
    if not tables:
        raise UserError("no training image has an object with a box")
    return pd.concat(tables, ignore_index=True)


if __name__ == "__main__":
    typer.run(main)
