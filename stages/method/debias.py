"""Section 3.3: the class-wise bias of CLIP, measured without labels and divided out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import entr

from stages.runtime.types import Floats, Integers


class ClassBias(NamedTuple):
    """bias: (classes,) float32 in (0, 1]. images: (classes,) how many the class was on top of."""

    bias: Floats
    images: Integers


def entropy(p: Floats) -> Floats:
    """Shannon entropy of each row of `p` (views, classes), in nats: (views,)."""
    of_each: Floats = entr(p.astype(np.float64)).sum(axis=1)
    return of_each


def entropy_limit_in_nats(limit: float, unit: Literal["nats", "normalised"], classes: int) -> float:
    """The limit in nats; `normalised` counts in entropies of a uniform guess over the classes.

    With one class every entropy is 0, and so is its limit.
    """
    return limit if unit == "nats" else limit * float(np.log(classes))


def class_bias(parts: Iterable[Floats], entropy_limit: float, min_count: int) -> ClassBias:
    """Mean top-1 probability of each class over the images that look like a single class.

    Images of entropy above `entropy_limit` (nats) do not count (steps 1-4 of section 3.3). A class
    on top of fewer than `min_count` images takes the mean bias of the other classes, weighted by
    their counts; with no such class at all nothing is known, and every bias is 1. (The authors'
    code divides 0 by 0 there.) No bias is less than 0.05.

    parts: raw probabilities (images, classes), of some images after the others, at least once.
    """
    counts, totals = [], []
    for p in parts:
        sure = p[entropy(p) <= entropy_limit]
        top, classes = sure.argmax(axis=1), p.shape[1]
        counts.append(np.bincount(top, minlength=classes))
        totals.append(np.bincount(top, weights=sure.max(axis=1, initial=0.0), minlength=classes))
    count, total = np.sum(counts, axis=0), np.sum(totals, axis=0)
    known = count >= min_count
    fallback = total[known].sum() / count[known].sum() if known.any() else 1.0
    bias = np.where(known, total / np.maximum(count, 1), fallback)
    return ClassBias(np.clip(bias, 0.05, 1).astype(np.float32), count)


def debias(p: Floats, bias: Floats, floor: float) -> Floats:
    """`p` (…, classes) raised to at least `floor`, then divided by the bias (section 3.3).

    The result may exceed 1: the initial label is clipped at once, the local one after the fusion.
    """
    return (np.maximum(p, np.float32(floor)) / bias).astype(np.float32)


def label_floor(floor: float | Literal["one_over_classes"], classes: int) -> float:
    """The smallest probability a label keeps; 1/classes as in the authors' code."""
    return 1 / classes if floor == "one_over_classes" else floor
