"""Section 3.2, Eq. 4: from class activation maps to the boxes of what is most active in them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from stages.method.views import Box
from stages.runtime.types import Floats

CELLS = 1 << 22  # of enlarged maps at a time


def boxes_of_maps(
    maps: Floats, side: int, threshold: float, kind: Literal["tight", "first_last"]
) -> Floats:
    """Boxes (maps, 4) around the most active part of each map.

    maps: (maps, height, width), enlarged before to `side`, that of the student's input.
    """
    boxes: list[Floats] = [np.empty((0, 4))]
    size = max(1, CELLS // side**2)
    for start in range(0, len(maps), size):
        part = torch.from_numpy(maps[start : start + size])[:, None]
        raised = F.interpolate(part, size=(side, side), mode="bilinear")[:, 0].numpy()
        if kind == "tight":
            boxes.append(region_box(scale_to_unit(raised), threshold))
        else:
            boxes.append(np.array([first_last_box(one, threshold) for one in raised]))
    return np.concatenate(boxes)


def scale_to_unit(activation: Floats) -> Floats:
    """Class activation maps (…, height, width), each scaled to 0..1 by its own extremes.

    A flat map says nothing of where the class is, and becomes 1 everywhere.
    """
    low = activation.min(axis=(-2, -1), keepdims=True)
    span = activation.max(axis=(-2, -1), keepdims=True) - low
    unit: Floats = np.where(span > 0, (activation - low) / np.where(span > 0, span, 1), 1)
    return unit.astype(activation.dtype, copy=False)


def region_box(unit_map: Floats, threshold: float) -> Floats:
    """The tight box of all cells of each map of `unit_map` (…, height, width) above `threshold`.

    Returns (…, 4): x0, y0, x1, y1 as shares of the width and height. A map scaled to 0..1 has its
    maximum of 1 above any threshold below 1, so there is always a box; that of a flat map is the
    image.
    """
    active = np.asarray(unit_map > threshold)
    edges = []
    for of_cells in (active.any(axis=-2), active.any(axis=-1)):
        cells = of_cells.shape[-1]
        first, last = of_cells.argmax(axis=-1), cells - np.flip(of_cells, axis=-1).argmax(axis=-1)
        edges.append((first / cells, last / cells))
    (x0, x1), (y0, y1) = edges
    return np.stack([x0, y0, x1, y1], axis=-1)


def first_last_box(activation: Floats, threshold: float) -> Box:
    """The published script's box: from the first to the last active cell in reading order.

    Its rows are those of the tight box, its columns just those of these two cells, and the last
    row and column are not inside. activation: (height, width), not scaled; the script adds 1e-5 to
    the range by which it divides. Where it crashes, for want of an active cell, the greatest one
    is taken.
    """
    height, width = activation.shape
    low, high = activation.min(), activation.max()
    active = np.flatnonzero((activation - low) / (high - low + np.float32(1e-5)) > threshold)
    ends = active[[0, -1]] if len(active) else np.repeat(activation.argmax(), 2)
    (y0, y1), (x0, x1) = np.divmod(ends, width)
    return min(x0, x1) / width, y0 / height, max(x0, x1) / width, y1 / height
