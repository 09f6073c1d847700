"""Local views of a user's own: a detector's boxes, or the true ones for the paper's study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stages.errors import UserError, reason

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
