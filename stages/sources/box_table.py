"""Local views of a user's own: a detector's boxes, or the true ones for the paper's study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stages.artifacts import CAM_BOXES
from stages.method.views import box_in_pixels
from stages.runtime.errors import UserError, reason
from stages.runtime.progress import say
from stages.runtime.types import Floats
from stages.sources.photograph import columns_of

KEY = "cam_boxes.boxes in params.yaml"
EDGES = ["x0", "y0", "x1", "y1"]


def box_table(path: str) -> pd.DataFrame:
    """A CSV or parquet of `image_id`, x0, y0, x1, y1 in pixels of the upright original, `class`.

    The class is optional, and empty without. Edges are whole numbers, x1 and y1 not inside.
    """
    try:
        if Path(path).suffix.lower() == ".parquet":
            boxes = pd.read_parquet(path)
        else:
            columns_of(path, KEY, ["image_id", "class", *EDGES])
            boxes = pd.read_csv(path, dtype={"image_id": str, "class": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{KEY}: {path} cannot be read: {reason(error)}") from None
    missing = [name for name in ("image_id", *EDGES) if name not in boxes.columns]
    if missing:
        raise UserError(f"{KEY}: {path} has no column {missing[0]!r}")
    edges = boxes[EDGES].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    whole = np.isfinite(edges).all(axis=1) & (edges % 1 == 0).all(axis=1)
    good = whole & (edges[:, 0] < edges[:, 2]) & (edges[:, 1] < edges[:, 3]) & (edges >= 0).all(1)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise UserError(
            f"{KEY}: {path}, box {row + 1} is {boxes[EDGES].iloc[row].to_list()}: "
            "not whole pixels with x0 < x1 and y0 < y1"
        )
    table = pd.DataFrame({"image_id": boxes["image_id"].astype(str)})
    table["class"] = boxes["class"].astype(str) if "class" in boxes else ""
    table[EDGES] = edges.astype(np.int32)
    return table


def views_of_file(path: str, rows: pd.DataFrame, side: int) -> pd.DataFrame:
    """The boxes of a file that are of the index's `rows`, in their order, as `CAM_BOXES` has them.

    side: of the square to which the student's input is squashed.
    """
    boxes = box_table(path)
    sized = rows[["image_id", "width", "height"]].reset_index(names="row")
    views = boxes.merge(sized, on="image_id").sort_values("row", kind="stable", ignore_index=True)
    say(
        f"cam_boxes: {len(views)} views of {views['image_id'].nunique()} of {len(rows)} images "
        f"from {path}; {len(boxes) - len(views)} of other images are left out"
    )
    outside = views[(views["x1"] > views["width"]) | (views["y1"] > views["height"])]
    if len(outside):
        raise UserError(f"{KEY}: a box of {outside['image_id'].iloc[0]} reaches out of the image")
    scale = side / views[["width", "height", "width", "height"]].to_numpy()
    squashed = views[EDGES].to_numpy() * scale
    views[["u0", "v0"]] = np.floor(squashed[:, :2] + 1e-6).astype(np.int32)
    views[["u1", "v1"]] = np.ceil(squashed[:, 2:] - 1e-6).astype(np.int32)
    views["rank"] = views.groupby("image_id").cumcount().astype(np.int32)
    views["score"] = np.float32(np.nan)
    return views[list(CAM_BOXES.columns)]


def with_edges(table: pd.DataFrame, boxes: Floats, rows: pd.DataFrame, side: int) -> pd.DataFrame:
    """`table` with the edges of `boxes`: in pixels of the originals, the index's `rows` of each
    box, and of the square to which they are squashed.
    """
    width, height = rows["width"].to_numpy(), rows["height"].to_numpy()
    table[EDGES] = box_in_pixels(boxes, width, height)
    table[["u0", "v0", "u1", "v1"]] = box_in_pixels(boxes, side, side)
    return table
