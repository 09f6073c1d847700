"""Section 3.2: which classes of an image get a local view, and the views' boxes in pixels."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from stages.runtime.types import Booleans, Floats, Integers

Box = tuple[float, float, float, float]

PART = 100  # images by which the published script divides its counts


def best_candidates(scores: Floats, mean_views: float) -> Booleans:
    """(images, classes): True for the images x mean_views largest of all scores.

    With `mean_views` above the number of classes that is all of them. Of scores that tie with the
    smallest of those (a saturated sigmoid's may be many) those come first that are best in their
    image, so that no image gets all the views, then those of earlier images.
    """
    wanted = min(max(round(len(scores) * mean_views), 1), scores.size)
    least = np.partition(scores, scores.size - wanted, axis=None)[scores.size - wanted]
    chosen = candidates(scores, float(least))
    surplus = int(chosen.sum()) - wanted
    if surplus:
        rows = np.flatnonzero((scores == least).any(axis=1))  # the others need no ranking
        image, c, rank = rank_candidates(scores[rows], chosen[rows])
        tied = np.flatnonzero(scores[rows[image], c] == least)
        last = tied[np.argsort(rank[tied], kind="stable")][-surplus:]
        chosen[rows[image[last]], c[last]] = False
    return chosen


def candidates(scores: Floats, threshold: float) -> Booleans:
    """(images, classes): True where a class gets a local view, that is where it is >= threshold."""
    return scores >= threshold


def search_parts(images: int) -> list[int]:
    """How many images each part of the published script's search has: 101, then PART again and
    again. What is left at the end is never counted.
    """
    return [PART + 1, *[PART] * ((images - 1) // PART - 1)] if images > PART else []


def search_threshold(
    scores_of_parts: Iterable[Floats], start: float, mean_views: float, step: float = 0.001
) -> tuple[float, bool]:
    """The published script's threshold: from `start` upwards, a step for each part of the images.

    scores_of_parts: scores (images, classes) of one part after the other, as `search_parts` has
    them. The first threshold at which a part has mean_views - 1 to mean_views + 1 candidates for
    each of PART images is taken (4 to 6 as published); if the parts end before, the last one
    reached. It never looks below `start`. Also whether it was found.
    """
    threshold = start
    for scores in scores_of_parts:
        per_image = float(candidates(scores, threshold).sum() / PART)
        if mean_views - 1 < per_image < mean_views + 1:
            return threshold, True
        threshold += step
    return threshold, False


def rank_candidates(scores: Floats, chosen: Booleans) -> tuple[Integers, Integers, Integers]:
    """Image, class and rank of what is `chosen` (images, classes): by image, best class first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    wanted = np.take_along_axis(chosen, order, axis=1)
    image, place = np.nonzero(wanted)
    return image, order[image, place], (np.cumsum(wanted, axis=1) - 1)[image, place]


def grid_boxes(side: int) -> list[Box]:
    """side x side boxes that tile the image, row by row (the paper's Figure 3d)."""
    return [
        (column / side, row / side, (column + 1) / side, (row + 1) / side)
        for row in range(side)
        for column in range(side)
    ]


def window_boxes(count: int) -> list[Box]:
    """A pyramid of windows, each half over its neighbours: 2 x 2, then 3 x 3, … (of this project).

    Sides are 2/3 of the image's, 1/2, … count: 4, 13, 29, …; or 9, the 3 x 3 alone.
    """
    boxes: list[Box] = []
    across = 3 if count == 9 else 2
    while len(boxes) < count:
        side, step = 2 / (across + 1), 1 / (across + 1)
        boxes += [
            (column * step, row * step, column * step + side, row * step + side)
            for row in range(across)
            for column in range(across)
        ]
        across += 1
    return boxes


def random_boxes(count: int, rng: np.random.Generator) -> Floats:
    """Boxes (count, 4) anywhere in the image (the paper's Figure 3c).

    Their sizes are not published. Each side is a quarter to three quarters of the image's.
    """
    sides = rng.uniform(0.25, 0.75, (count, 2))
    corners = rng.uniform(0, 1, (count, 2)) * (1 - sides)
    boxes: Floats = np.hstack([corners, corners + sides])
    return boxes


def expand_box(box: Floats, offset: float) -> Floats:
    """Each `box` (…, 4) grown by `offset` every way, clipped to the image; shares of its sides."""
    grown: Floats = np.clip(box + offset * np.array([-1, -1, 1, 1]), 0, 1)
    return grown


def box_in_pixels(box: Floats, width: Integers | int, height: Integers | int) -> Integers:
    """The smallest box of whole pixels around each `box` (…, 4), at least one pixel.

    width, height: of the image, or of the image of each box (…).
    """
    tiny = 1e-6  # a share computed as 64.00000001 pixels is 64
    size = np.stack(np.broadcast_arrays(width, height), axis=-1)
    first = np.minimum(np.floor(box[..., :2] * size + tiny), size - 1)
    last = np.maximum(np.ceil(box[..., 2:] * size - tiny), first + 1)
    return np.concatenate([first, last], axis=-1).astype(np.int32)
