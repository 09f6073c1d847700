"""From which score on a class is called, found without labels; not of the paper.

A student's scores order images well, and are off as probabilities: soft labels of 2.8 classes an
image teach it to say so, where 1.3 are there, and it reaches a half too seldom. So pseudo-labels of
at least a half are taken for the truth; the student's logits are scaled and shifted, a class at a
time, so that they make it likeliest (Platt 1999, whose labels are true ones), and the cut calls a
class as often as the probabilities that follow expect it.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import expit

from stages.method.closed_form import Doubles, calibrate
from stages.runtime.types import Booleans, Floats

SHOWN = 0.5  # a class of a pseudo-label at least this large is taken to be on the image
ENOUGH = 10  # answers that count as much as all pseudo-labels of a class
BINS = 10  # of probabilities, where they are compared with the truth
APART = 1e-5  # by how much, of itself, a probability is above the next, or they count as one
LEAST, MOST = 1e-7, 1 - 1e-7  # probabilities, before their logits are taken


class Cuts(NamedTuple):
    """Of each class (classes,): scale and offset of its logits, and the cut of what follows.

    told_apart: whether the student's scores tell images with the class from others at all; where
    they do not, nothing is changed, and the cut is a half.
    """

    scale: Doubles
    offset: Doubles
    threshold: Doubles
    told_apart: Booleans


def cuts_of(
    probabilities: Floats,
    labels: Floats,
    answers: Floats | None = None,
    precision: float | None = None,
) -> Cuts:
    """The cuts that follow from what the student says of the training images.

    probabilities, labels: the student's and the pseudo-labels, (images, classes) in [0, 1].
    answers: (images, classes), 1 or 0, which the labels hold too; NaN where nobody looked.
    precision: that the calls of each class are expected to have; None: as many as are expected.
    """
    shown = labels >= SHOWN
    weights = None if answers is None else np.where(np.isnan(answers), 1, 1 + len(shown) / ENOUGH)
    by = calibrate(logits_of(probabilities), shown.astype(np.float32), weights=weights)
    scale, offset = by.weight[:, 0], by.bias
    told_apart = shown.any(axis=0) & ~shown.all(axis=0) & (scale > 0)
    scale = np.where(told_apart, scale, 1.0)
    offset = np.where(told_apart, offset, 0.0)
    p = calibrated(probabilities, scale, offset)
    cut = expected_share if precision is None else partial(precise, precision=precision)
    threshold = np.array([cut(column) for column in p.T])
    return Cuts(scale, offset, np.where(told_apart, threshold, 0.5), told_apart)


def calibrated(probabilities: Floats | Doubles, scale: Doubles, offset: Doubles) -> Doubles:
    """The probabilities whose logits are scaled and shifted, class by class."""
    p: Doubles = expit(scale * logits_of(probabilities) + offset)
    return p


def logits_of(probabilities: Floats | Doubles) -> Doubles:
    """Their logits, in double precision, none infinite."""
    p = np.clip(probabilities.astype(np.float64), LEAST, MOST)
    logits: Doubles = np.log(p / (1 - p))
    return logits


def expected_share(probabilities: Doubles) -> float:
    """The cut of one class that calls as many of the images as are expected to show it.

    probabilities: (images,), whose sum that is. Precision and recall are expected to be equal
    there, or as near as images of one probability allow. It lies halfway to the next probability,
    so that the last bits decide nothing. A half where all probabilities are one.
    """
    p = np.sort(probabilities)[::-1]
    ends = np.flatnonzero(parted(p)) + 1
    if not len(ends):
        return 0.5
    called = int(ends[np.abs(ends - p.sum()).argmin()])
    return float((p[called - 1] + p[called]) / 2)


def precise(probabilities: Doubles, precision: float) -> float:
    """The lowest cut of one class whose calls are expected to be right that often, on average.

    probabilities: (images,), whose mean over the calls that is. The cut lies halfway to the next
    one; above the greatest where not even that is enough.
    """
    p = np.append(np.sort(probabilities)[::-1], 0.0)
    right = np.cumsum(p[:-1]) / np.arange(1, len(p)) >= precision
    called = int(np.flatnonzero(right & parted(p)).max(initial=-1)) + 1
    return float(((p[called - 1] if called else 1.0) + p[called]) / 2)


def parted(descending: Doubles) -> Booleans:
    """After which of the probabilities, but the last, calls may end: equal ones are called
    together.
    """
    above: Booleans = descending[:-1] > descending[1:] * (1 + APART)
    return above


def f1_of_each(truth: Floats, called: Booleans) -> Doubles:
    """F1 of each class (classes,); NaN where no image is known to show it.

    truth: (images, classes), 1 or 0, or NaN where a pair is not judged.
    """
    judged = ~np.isnan(truth)
    right = (called & (truth > 0)).sum(axis=0)
    positives, calls = (truth > 0).sum(axis=0), (called & judged).sum(axis=0)
    f1 = 2 * right / np.maximum(positives + calls, 1)
    return np.where(positives > 0, f1, np.nan)


def calibration_error(truth: Floats, probabilities: Floats | Doubles) -> float:
    """How far probabilities are from the share that is true, on average over all judged pairs.

    The expected calibration error of ten bins of equal width (Guo et al. 2017).
    """
    judged = ~np.isnan(truth)
    p, shown = probabilities[judged], truth[judged] > 0
    of_bin = np.minimum((p * BINS).astype(int), BINS - 1)
    said, true = (np.bincount(of_bin, values, BINS) for values in (p, shown))
    return float(np.abs(said - true).sum() / max(len(p), 1))
