"""`ccd inspect`: all that the last run knows of one image, stage by stage."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import ImageDraw

from stages.artifacts import (
    ANSWERS,
    CAM_BOXES,
    GLOBAL_SCORES,
    GROUND_TRUTH,
    INITIAL_LABELS,
    LOCAL_LABELS,
    LOCAL_SCORES,
    PREDICTIONS,
    PSEUDO_LABELS,
    THRESHOLDS,
)
from stages.images.decode import read_image
from stages.method.cuts import calibrated
from stages.runtime.errors import UserError
from stages.storage.index import read_index
from stages.storage.tables import Table, class_columns, read_table

ON_THE_WAY = {  # what is said of a class on an image, from the teacher to the student
    "whole image": GLOBAL_SCORES,
    "initial": INITIAL_LABELS,
    "local": LOCAL_LABELS,
    "pseudo": PSEUDO_LABELS,
    "student": PREDICTIONS,
    "answer": ANSWERS,
    "truth": GROUND_TRUTH,
}
LEAST = 0.05  # a class that nothing on the way says more of is not shown
SAID = 3  # classes that are named of a view
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


class Known(NamedTuple):
    """Of one image.

    row: of the index. labels: a row a class that something says is there, the likeliest first, and
    a column for each of `ON_THE_WAY` that there is, NaN where nothing is said; the student's are
    calibrated, and beside them stands the `cut`. views: class, edges and what the teacher says.
    """

    row: pd.Series
    labels: pd.DataFrame
    views: pd.DataFrame


def known_of(image: str) -> Known:
    """What is known of an image, by its id or its path; raises `UserError` for another one."""
    index, digest = read_index()
    name = str(Path(image))
    found = index[(index["image_id"] == name) | (index["path"] == name)]
    if found.empty:
        found = index[index["path"].map(os.path.realpath) == os.path.realpath(image)]
    if found.empty:
        some = ", ".join(index["image_id"].head(3))
        raise UserError(f"{image} is no image of data/index.parquet, which has {some}, …")
    row = found.iloc[0]
    said = {
        column: values
        for column, table in ON_THE_WAY.items()
        if (values := said_of(str(row["image_id"]), table, digest)) is not None
    }
    labels = pd.DataFrame(said)
    if "student" in labels and THRESHOLDS.path.exists():
        cuts, _ = read_table(THRESHOLDS)
        if sorted(cuts["class"]) != sorted(labels.index):
            raise UserError(f"{THRESHOLDS.path} is of other classes: run `dvc repro`")
        by = cuts.set_index("class").loc[labels.index]
        p = labels["student"].to_numpy(np.float64)[None]
        labels["student"] = calibrated(p, by["scale"].to_numpy(), by["offset"].to_numpy())[0]
        labels.insert(list(labels).index("student") + 1, "cut", by["threshold"])
    if len(labels.columns):
        worth = labels.drop(columns="cut", errors="ignore").max(axis=1) >= LEAST
        last = [str(column) for column in labels if column not in ("cut", "answer", "truth")]
        labels = labels[worth].sort_values(last[::-1], ascending=False, kind="stable")
    return Known(row, labels, views_of(str(row["image_id"]), digest))


def said_of(image_id: str, table: Table, digest: str) -> pd.Series | None:
    """The values of an image's classes; None where the table is not made or has no such image."""
    if not table.path.exists():
        return None
    frame, _ = read_table(table, digest)
    own = frame[frame["image_id"] == image_id]
    return None if own.empty else own[class_columns(table, frame)].iloc[0].astype(float)


def views_of(image_id: str, digest: str) -> pd.DataFrame:
    """The image's local views: `class`, edges in pixels, and what the teacher `says`, if it did."""
    if not CAM_BOXES.path.exists():
        return pd.DataFrame()
    boxes, _ = read_table(CAM_BOXES, digest)
    own = boxes["image_id"] == image_id
    views = boxes.loc[own, ["class", "x0", "y0", "x1", "y1"]].reset_index(drop=True)
    if LOCAL_SCORES.path.exists():
        scores, _ = read_table(LOCAL_SCORES, digest)
        if len(scores) == len(boxes):
            p = scores.loc[own, class_columns(LOCAL_SCORES, scores)]
            views["says"] = [in_words(row) for _, row in p.iterrows()]
    return views


def in_words(p: pd.Series) -> str:
    """The likeliest classes and their probabilities."""
    best = p.astype(float).nlargest(SAID)
    return ", ".join(f"{name} {value:.2f}" for name, value in best.items())


def picture(known: Known, form: str) -> bytes:
    """The photograph with its views drawn in, each with the class that asked for it.

    form: PNG or JPEG, which the bytes are of.
    """
    image = read_image(str(known.row["path"]), str(known.row["sha256"]))
    draw = ImageDraw.Draw(image)
    width = max(2, min(image.size) // 200)
    for number, view in enumerate(known.views.itertuples(index=False)):
        name, x0, y0, x1, y1 = list(view)[:5]
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((x0, y0, x1 - 1, y1 - 1), outline=colour, width=width)
        draw.text((x0 + 2 * width, y0 + width), name, fill=colour, font_size=max(12, 6 * width))
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()
