"""Section 3.2: which classes of an image get a local view, and where it lies."""

from __future__ import annotations

import numpy as np

from stages.method.types import Booleans, Floats

Box = tuple[float, float, float, float]


def candidate_threshold(scores: Floats, mean_views: float) -> float:
    """The threshold at which an image has `mean_views` candidate classes on average.

    It is the (images x mean_views)-th largest of all scores (images, classes), so that a score
    equal to it is a candidate; with `mean_views` above the number of classes, the smallest score.
    """
    wanted = min(max(round(len(scores) * mean_views), 1), scores.size)
    return float(np.partition(scores, scores.size - wanted, axis=None)[scores.size - wanted])


def candidates(scores: Floats, threshold: float) -> Booleans:
    """(images, classes): True where a class gets a local view, that is where it is >= threshold."""
    return scores >= threshold


def scale_to_unit(activation: Floats) -> Floats:
    """A class activation map scaled to 0..1 by its own least and greatest value.

    A flat map says nothing of where the class is, and becomes 1 everywhere.
    """
    low, high = activation.min(), activation.max()
    if not high > low:
        return np.ones_like(activation)
    unit: Floats = (activation - low) / (high - low)
    return unit


def region_box(unit_map: Floats, threshold: float) -> Box:
    """The tight box of all cells of `unit_map` (height, width) above `threshold`.

    Returns x0, y0, x1, y1 as shares of the width and height. A map scaled to 0..1 has its maximum
    of 1 above any threshold below 1, so there is always a box; that of a flat map is the image.
    """
    height, width = unit_map.shape
    rows = np.flatnonzero((unit_map > threshold).any(axis=1))
    columns = np.flatnonzero((unit_map > threshold).any(axis=0))
    return (
        columns[0] / width,
        rows[0] / height,
        (columns[-1] + 1) / width,
        (rows[-1] + 1) / height,
    )


def expand_box(box: Box, offset: float) -> Box:
    """`box` grown by `offset` on every side, clipped to the image; all shares of its sides."""
    x0, y0, x1, y1 = box
    return (
        max(x0 - offset, 0.0),
        max(y0 - offset, 0.0),
        min(x1 + offset, 1.0),
        min(y1 + offset, 1.0),
    )


def box_in_pixels(box: Box, width: int, height: int) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels around `box` in an image of that size."""
    x0, y0, x1, y1 = box
    tiny = 1e-6  # a share computed as 64.00000001 pixels is 64
    return (
        int(np.floor(x0 * width + tiny)),
        int(np.floor(y0 * height + tiny)),
        int(np.ceil(x1 * width - tiny)),
        int(np.ceil(y1 * height - tiny)),
    )
