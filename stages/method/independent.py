"""Labels of each class by itself, not by a softmax over the classes: an extension of the paper.

A softmax gives all to the class that is most visible. Here a class's score is compared with that of
the same class on the other images, which takes out its bias as well.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from stages.runtime.types import Floats


class ClassScale(NamedTuple):
    """Of each class's scores over the training images: (classes,) each. cut: in deviations."""

    mean: Floats
    deviation: Floats
    cut: Floats


def class_scale(scores: Floats, cut: float | Literal["otsu"]) -> ClassScale:
    """Mean, deviation and cut of the scores (images, classes) of each class.

    cut: where a label is 1/2, in deviations above the mean, for all classes; or otsu, which parts
    the images of each class in two without any label.
    """
    if not len(scores):
        nothing = np.zeros(scores.shape[1])
        return ClassScale(nothing, nothing + 1, nothing)
    exact = scores.astype(np.float64)
    mean, deviation = exact.mean(axis=0), exact.std(axis=0)
    flat = deviation <= 1e-6 * np.abs(mean)  # but for rounding
    deviation = np.where(flat, 1, deviation)
    standardised = (exact - mean) / deviation
    cuts = [otsu(of_class) if cut == "otsu" else cut for of_class in standardised.T]
    return ClassScale(mean, deviation, np.array(cuts))


def independent_labels(scores: Floats, scale: ClassScale, slope: float) -> Floats:
    """Labels (images, classes) float32 in [0, 1]: a sigmoid of the standardised scores.

    slope: how many logits a deviation is.
    """
    standardised = (scores - scale.mean) / scale.deviation
    labels: Floats = expit(slope * (standardised - scale.cut)).astype(np.float32)
    return labels


def otsu(values: Floats) -> float:
    """The cut that parts `values` into two sets as far apart as can be (Otsu 1979).

    It maximises the variance between the sets; halfway between the two values it lies between.
    """
    ordered = np.sort(values)
    below = np.arange(1, len(ordered))
    if len(below) == 0:
        return float(ordered.mean()) if len(ordered) else 0.0
    total = ordered.cumsum()
    low = total[:-1] / below
    high = (total[-1] - total[:-1]) / (len(ordered) - below)
    between = below * (len(ordered) - below) * (high - low) ** 2
    at = int(between.argmax())
    return float((ordered[at] + ordered[at + 1]) / 2)
