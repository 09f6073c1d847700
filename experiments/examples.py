"""The paper's Figures 1 and 2a to c: single photographs, and what CLIP says of them and of patches.

    python -m experiments.examples

writes into `results/`: figure1.csv, how likely CLIP finds the classes of photographs that show two,
by the best of 1, 4, 9 and 16 patches that tile them, and figure1.jpg, one such photograph with the
best patches; figure2abc.csv and .jpg, a photograph of the classes whose bias is least, middling and
largest, and how sure CLIP is of it. The ground truth says what is on a photograph. Nothing is
trained.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import typer
from PIL import Image, ImageDraw

from experiments.boxes import embed_boxes
from experiments.figures import RESULTS, photograph, sheet
from experiments.results import aligned, read_data
from stages.artifacts import BIAS, CLASS_TEXT, GLOBAL_SCORES
from stages.method.labelling import Zeroshot, zeroshot
from stages.method.views import box_in_pixels, grid_boxes
from stages.runtime.errors import UserError
from stages.runtime.params import Params
from stages.runtime.params_file import PARAMS_FILE, parse_params, read_yaml
from stages.runtime.types import Booleans, Floats
from stages.storage.arrays import read_store
from stages.storage.tables import class_columns, read_table

GRIDS = (1, 2, 3, 4)  # patches a side
MOST = 200  # photographs of two classes
COLOURS = ("#e9a820", "#2186eb")  # of the two classes' patches


class Patched(NamedTuple):
    """What CLIP says of photographs' patches: (images, patches, classes), of a grid a side."""

    side: int
    p: Floats


def main() -> None:
    """Draw them both."""
    try:
        params, data = parse_params(read_yaml(PARAMS_FILE)), read_data()
        known = aligned(data.truth, data.rows) > 0
        bias, _ = read_table(BIAS, data.digest)
        scores, _ = read_table(GLOBAL_SCORES, data.digest)
        data.must_be_of(class_columns(GLOBAL_SCORES, scores))
        data.must_be_of(list(bias["class"]))
        sureness(data.rows, known, aligned(scores, data.rows), bias)
        two = np.flatnonzero(known.sum(axis=1) == 2)[:MOST]
        if not len(two):
            raise UserError("Figure 1 was left out: no photograph is known to show two classes")
        rows = data.rows.iloc[two]
        patched = [look(params, rows, side) for side in GRIDS]
        by_patch(rows, known[two], patched, list(bias["class"]))
    except UserError as error:
        typer.echo(f"examples: {error}", err=True)
        raise typer.Exit(1) from None


def sureness(rows: pd.DataFrame, known: Booleans, p: Floats, bias: pd.DataFrame) -> None:
    """Figures 2a to c. known (images, classes): what is on them; p: CLIP's probabilities.

    Of the photographs of one class alone that CLIP knows, the one of which it is middling sure.
    """
    order = bias["bias"].to_numpy().argsort(kind="stable")
    lines: list[dict[str, object]] = []
    pictures = []
    for panel, c in zip("abc", order[[0, len(order) // 2, -1]], strict=True):
        alone = known[:, c] & (known.sum(axis=1) == 1) & (p.argmax(axis=1) == c)
        if not alone.any():
            continue
        places = np.flatnonzero(alone)
        i = places[p[places, c].argsort(kind="stable")[len(places) // 2]]
        runner_up = int(np.argsort(-p[i], kind="stable")[1])
        names = [str(bias["class"].iloc[k]) for k in (c, runner_up)]
        line: dict[str, object] = {
            "panel": panel,
            "image_id": rows["image_id"].iloc[i],
            "class": names[0],
        }
        line |= {"bias": bias["bias"].iloc[c], "probability": p[i, c]}
        lines.append(line | {"runner_up": names[1], "its_probability": p[i, runner_up]})
        pictures.append(photograph(rows.iloc[i]))
    if lines:
        RESULTS.mkdir(exist_ok=True)
        table = pd.DataFrame(lines).round(4)
        table.to_csv(RESULTS / "figure2abc.csv", index=False, lineterminator="\n")
        sheet([pictures]).save(RESULTS / "figure2abc.jpg", quality=85)


def look(params: Params, rows: pd.DataFrame, side: int) -> Patched:
    """What CLIP says of the side x side patches that tile each of the index's `rows`."""
    count = side**2
    width, height = (np.repeat(rows[of].to_numpy(), count) for of in ("width", "height"))
    edges = box_in_pixels(np.tile(grid_boxes(side), (len(rows), 1)), width, height)
    seen = embed_boxes(params, rows, np.repeat(np.arange(len(rows)), count), edges)
    p = clip_of(params).probabilities(seen)
    return Patched(side, p.reshape(len(rows), count, -1))


def clip_of(params: Params) -> Zeroshot:
    """What makes probabilities of embeddings."""
    texts, of_texts = read_store(CLASS_TEXT)
    return zeroshot(params.labels, texts["embedding"][...], of_texts["temperature"])


def by_patch(
    rows: pd.DataFrame, known: Booleans, patched: list[Patched], classes: list[str]
) -> None:
    """Figure 1: of each size of patch, the best one of a class that is there, on average; drawn on
    the photograph whose gain by smaller patches is the middle one.
    """
    best = np.stack([of.p.max(axis=1) for of in patched])  # (grids, images, classes)
    there = np.where(known, best, np.nan)
    least = np.nanmin(there, axis=2)  # of both classes, the one that is seen less
    gain = least.max(axis=0) - least[0]
    shown = int(gain.argsort(kind="stable")[len(gain) // 2])
    both = np.flatnonzero(known[shown])
    lines: list[dict[str, object]] = []
    pictures = []
    for grid, of in enumerate(patched):
        line: dict[str, object] = {"patches": of.side**2, "images": len(rows)}
        line |= {"mean": np.nanmean(there[grid]), "mean_of_the_less_seen": least[grid].mean()}
        line |= {"image_id": rows["image_id"].iloc[shown]}
        for which, c in zip(("one", "other"), both, strict=True):
            line |= {which: classes[c], f"{which}_probability": best[grid, shown, c]}
        lines.append(line)
        pictures.append(with_patches(rows.iloc[shown], of, shown, both.tolist()))
    RESULTS.mkdir(exist_ok=True)
    table = pd.DataFrame(lines).round(4)
    table.to_csv(RESULTS / "figure1.csv", index=False, lineterminator="\n")
    sheet([pictures]).save(RESULTS / "figure1.jpg", quality=85)


def with_patches(row: pd.Series, of: Patched, image: int, both: list[int]) -> Image.Image:
    """A photograph with the patch in which CLIP sees each of two classes best."""
    picture = photograph(row)
    draw = ImageDraw.Draw(picture)
    for inset, (c, colour) in enumerate(zip(both, COLOURS, strict=True)):
        box = np.array(grid_boxes(of.side)[int(of.p[image, :, c].argmax())]) * picture.width
        edges = [*(box[:2] + 3 * inset), *(box[2:] - 1 - 3 * inset)]
        draw.rectangle(edges, outline=colour, width=3)
    return picture


if __name__ == "__main__":
    typer.run(main)
