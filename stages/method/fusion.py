"""Eq. 5-7: from the probabilities of the local views to the pseudo-labels."""

from __future__ import annotations

import numpy as np

from stages.runtime.types import Booleans, Floats, Integers


def pool_views(p: Floats, image_of_view: Integers, images: int) -> tuple[Floats, Booleans]:
    """The greatest probability, or other score, of each class over an image's views (Eq. 5, 6).

    p: (views, classes); image_of_view: (views,) in [0, images).
    Returns the local labels (images, classes) float32, 0 where an image has no view, and (images,)
    True where it has one.
    """
    viewed = np.bincount(image_of_view, minlength=images) > 0
    local = np.full((images, p.shape[1]), -np.inf, np.float32)
    np.maximum.at(local, image_of_view, p)
    return np.where(viewed[:, None], local, np.float32(0)), viewed


def fuse(initial: Floats, local: Floats, viewed: Booleans, alpha: float) -> Floats:
    """alpha * initial + (1 - alpha) * local, clipped to [0, 1] (Eq. 7).

    initial, local: (images, classes), debiased; viewed: (images,). An image without a view keeps
    its initial label. (The authors' code mixes in a label of zeros.)
    """
    fused = alpha * initial + (1 - alpha) * local
    return np.clip(np.where(viewed[:, None], fused, initial), 0, 1).astype(np.float32)


def answered(labels: Floats, answers: Floats) -> Floats:
    """Labels (images, classes), and 1 or 0 where somebody answered; not of the paper.

    answers: (images, classes), NaN where nobody looked.
    """
    return np.where(np.isnan(answers), labels, answers)
