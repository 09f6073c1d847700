"""The paper's figures of what CLIP says and where the student looks, as the pipeline last ran.

    python -m experiments.figures

writes into `results/`: figure2d.csv and .svg, the class-wise bias (Figure 9 is the same of other
data sets); figure10.csv and .svg, how positives are spread over the classes; figure8.csv, .svg and
.jpg, maps of classes that are seen together; figure11.csv and .jpg, photographs with their boxes.
Nothing is trained. The ground truth is read to judge, where there is any.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from PIL import Image, ImageDraw

from experiments.charts import togetherness
from experiments.observed import likeliest, one_present
from experiments.results import aligned
from stages.artifacts import (
    BIAS,
    CAM_BOXES,
    CAM_MAPS,
    GLOBAL_SCORES,
    GROUND_TRUTH,
    INDEX,
    PSEUDO_LABELS,
)
from stages.images.decode import read_image
from stages.page import charts
from stages.page.cards import heated
from stages.page.sections import positive_shares
from stages.runtime.errors import UserError
from stages.runtime.types import Booleans, Floats, Integers
from stages.storage.arrays import read_store
from stages.storage.index import index_digest, usable
from stages.storage.tables import class_columns, class_values, read_table

RESULTS = Path("results")
SIDE = 160  # pixels of a photograph on a sheet
COLUMNS = 6
RIGHT, WRONG = "#3ebd93", "#e12d39"


def main() -> None:
    """Draw them all."""
    try:
        index, _ = read_table(INDEX)
        digest = index_digest(index)
        rows = usable(index, "train")
        truth, _ = read_table(GROUND_TRUTH, digest)
        known = aligned(truth, rows) > 0
        draw_labels(rows, known, digest)
        draw_maps(rows, known, class_columns(GROUND_TRUTH, truth), digest)
    except UserError as error:
        typer.echo(f"figures: {error}", err=True)
        raise typer.Exit(1) from None


def draw_labels(rows: pd.DataFrame, known: Booleans, digest: str) -> None:
    """Figures 2d and 10. known (images, classes): what is on the photographs `rows`."""
    bias, _ = read_table(BIAS, digest)
    columns = ["class", "bias", "count", "measured"]
    write("figure2d", bias.sort_values("bias")[columns], charts.bias(bias))
    scores, _ = read_table(GLOBAL_SCORES, digest)
    labels, _ = read_table(PSEUDO_LABELS, digest)
    counted = {
        "CLIP's top class": likeliest(aligned(scores, rows)) > 0,
        "pseudo-labels from 0.5": class_values(PSEUDO_LABELS, labels) >= 0.5,
    }
    if known.any():
        single = one_present(known.astype(np.float32), np.random.default_rng(0)) > 0
        counted = {"ground truth": known, "single positive": single} | counted
    shares = positive_shares(counted, list(bias["class"]))
    write("figure10", shares, charts.label_counts(shares, list(counted)))


def draw_maps(rows: pd.DataFrame, known: Booleans, classes: list[str], digest: str) -> None:
    """Figures 8 and 11. known (images, classes): what is on the photographs `rows`."""
    boxes, _ = read_table(CAM_BOXES, digest)
    maps: Floats = read_store(CAM_MAPS, digest)[0]["map"][...]
    if not len(maps) or not known.any():
        raise UserError(
            "Figures 8 and 11 were left out: they need views of class activation maps "
            "(cam_boxes.views in params.yaml) and labels to judge them by (source.labels)"
        )
    image = pd.Index(rows["image_id"]).get_indexer(pd.Index(boxes["image_id"]))
    of_class = pd.Index(classes).get_indexer(pd.Index(boxes["class"]))
    pairs = alike(image, of_class, maps, known)
    if len(pairs):
        most = image, of_class, maps, pairs["one"].iloc[0], pairs["other"].iloc[0]
        sheet(of_pair(rows, *most)).save(RESULTS / "figure8.jpg", quality=85)
    named = pairs.assign(**{who: [classes[c] for c in pairs[who]] for who in ("one", "other")})
    write("figure8", named, togetherness(named))
    views = boxes.assign(right=known[image, of_class])
    share = views.groupby("image_id")["right"].agg(["mean", "size"]).round(4)
    share = share[share["size"] >= min(3, share["size"].max())].rename(
        columns={"mean": "right", "size": "views"}
    )
    share.sort_values("right").to_csv(RESULTS / "figure11.csv", lineterminator="\n")
    sheet(of_kinds(rows, views, share["right"])).save(RESULTS / "figure11.jpg", quality=85)


def of_pair(
    rows: pd.DataFrame, image: Integers, of_class: Integers, maps: Floats, one: int, other: int
) -> list[list[Image.Image]]:
    """A line of photographs that have maps of two classes, and a line of maps for each."""
    shown = [i for i in np.unique(image) if {one, other} <= set(of_class[image == i])][:COLUMNS]
    lines = [[photograph(rows.iloc[i]) for i in shown]]
    for c in (one, other):
        at = [int(np.flatnonzero((image == i) & (of_class == c))[0]) for i in shown]
        lines.append([heated(photograph(rows.iloc[image[n]]), maps[n]) for n in at])
    return lines


def of_kinds(rows: pd.DataFrame, views: pd.DataFrame, right: pd.Series) -> list[list[Image.Image]]:
    """A line each of the photographs whose boxes are best, mixed and worst.

    right: by photograph, the share of its views whose class is on it.
    """
    kinds = (-right, (right - 0.5).abs(), right)
    files = rows.set_index("image_id")
    return [
        [
            with_boxes(files.loc[name], views[views["image_id"] == name])
            for name in kind.sort_values(kind="stable").index[:COLUMNS]
        ]
        for kind in kinds
    ]


def alike(
    image: Integers, of_class: Integers, maps: Floats, known: Booleans, least: int = 10
) -> pd.DataFrame:
    """Pairs of classes, those with the most similar maps first.

    image, of_class: of each of `maps`. known (images, classes). similarity: mean correlation of the
    two maps over the images, at least `least`, that have both. together: of the images that hold
    one of the two, the share that holds both.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
    classes = known.shape[1]
    place = np.full((len(known), classes), -1)
    place[image, of_class] = np.arange(len(maps))
    found = []
    for one in range(classes):
        for other in range(one + 1, classes):
            both = (place[:, one] >= 0) & (place[:, other] >= 0)
            if both.sum() >= least:
                similar = (flat[place[both, one]] * flat[place[both, other]]).sum(axis=1).mean()
                union = (known[:, one] | known[:, other]).sum()
                together = (known[:, one] & known[:, other]).sum() / max(union, 1)
                found.append([one, other, int(both.sum()), float(similar), float(together)])
    table = pd.DataFrame(found, columns=["one", "other", "images", "similarity", "together"])
    return table.sort_values("similarity", ascending=False, ignore_index=True).round(4)


def with_boxes(row: pd.Series, views: pd.DataFrame) -> Image.Image:
    """A photograph with its views' boxes: green where the view's class is on it, else red."""
    image = photograph(row)
    x, y = SIDE / row["width"], SIDE / row["height"]
    draw = ImageDraw.Draw(image)
    for view in views.to_dict("records"):
        edges = (view["x0"] * x, view["y0"] * y, view["x1"] * x - 1, view["y1"] * y - 1)
        draw.rectangle(edges, outline=RIGHT if view["right"] else WRONG, width=2)
    return image


def photograph(row: pd.Series) -> Image.Image:
    """The photograph of a row of the index, small and square."""
    return read_image(str(row["path"]), str(row["sha256"])).resize((SIDE, SIDE))


def sheet(lines: list[list[Image.Image]]) -> Image.Image:
    """Pictures in lines and columns, on white."""
    step = SIDE + 6
    canvas = Image.new("RGB", (step * max(map(len, lines)), step * len(lines)), "white")
    for y, line in enumerate(lines):
        for x, picture in enumerate(line):
            canvas.paste(picture, (x * step, y * step))
    return canvas


def write(name: str, table: pd.DataFrame, chart: str) -> None:
    """A figure's numbers and its chart."""
    RESULTS.mkdir(exist_ok=True)
    table.round(4).to_csv(RESULTS / f"{name}.csv", index=False, lineterminator="\n")
    (RESULTS / f"{name}.svg").write_text(chart)


if __name__ == "__main__":
    typer.run(main)
