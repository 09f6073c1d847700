"""A linear classifier of soft labels in closed form: each class against the rest, one covariance.

Fisher's discriminant (Fisher 1936) weighed by soft labels, with the covariance of all images, which
is shrunken towards a sphere (Ledoit and Wolf 2004; Friedman 1989). For features f (dim,) and labels
q in [0, 1], of class c:

    m+ = sum q_c f / sum q_c            m- = sum (1 - q_c) f / sum (1 - q_c)
    S  = covariance of f over all images
    w  = (S + shrinkage tr(S) / dim I)^-1 (m+ - m-)
    b  = -1/2 w (m+ + m-)

then a logistic fit of two numbers a class (Platt 1999) makes logits of w f + b. Everything follows
from sums over the images, which are taken a part at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.runtime.types import Floats

SHRINKAGES = tuple(float(s) for s in np.logspace(-4, 1.5, 40))
LEAST_MASS = 1e-6  # of a class's labels, and of their complements, or there is no head for it
FOLDS = 4
SAMPLE = 20_000  # images by which the shrinkage is chosen
STEPS = 50  # of Newton's method, at most

Doubles = npt.NDArray[np.float64]
Part = tuple[Floats, Floats]  # features (images, dim) and labels (images, classes)


class Sums(NamedTuple):
    """Sums over images: their number, of f, f f', q and q f'."""

    images: int
    features: Doubles
    products: Doubles
    labels: Doubles
    weighed: Doubles

    def less(self, others: Sums) -> Sums:
        """Of the images that are not among the others."""
        rest = (mine - theirs for mine, theirs in zip(self[1:], others[1:], strict=True))
        return Sums(self.images - others.images, *rest)


class Directions(NamedTuple):
    """The axes (dim, dim) of a covariance and their variances, and of each class both means."""

    axes: Doubles
    variances: Doubles
    with_class: Doubles
    without: Doubles


class Head(NamedTuple):
    """weight (classes, dim) and bias (classes,); both zero of a class whose labels have no mass."""

    weight: Doubles
    bias: Doubles


def sums_of(features: Floats, labels: Floats) -> Sums:
    """The sums of some images: features (images, dim), labels (images, classes) in [0, 1]."""
    f, q = features.astype(np.float64), labels.astype(np.float64)
    return Sums(len(f), f.sum(axis=0), f.T @ f, q.sum(axis=0), q.T @ f)


def directions_of(sums: Sums) -> Directions:
    """What the head follows from, whatever the shrinkage."""
    mean = sums.features / sums.images
    covariance = sums.products / sums.images - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)
    mass = sums.labels[:, None]
    rest = sums.images - mass
    usable = np.minimum(mass, rest) > LEAST_MASS
    with_class = np.where(usable, sums.weighed / np.where(usable, mass, 1), mean)
    without = np.where(usable, (sums.features - sums.weighed) / np.where(usable, rest, 1), mean)
    return Directions(axes, np.maximum(variances, 0), with_class, without)


def head_of(of: Directions, shrinkage: float) -> Head:
    """The head, before its logits are calibrated."""
    scale = of.variances + shrinkage * max(of.variances.mean(), 1e-12)
    weight = ((of.with_class - of.without) @ of.axes / scale) @ of.axes.T
    bias = -0.5 * (weight * (of.with_class + of.without)).sum(axis=1)
    return Head(weight, bias)


def fit(features: Floats, labels: Floats, shrinkage: float) -> Head:
    """The head of all images at once, not calibrated: see the module."""
    return head_of(directions_of(sums_of(features, labels)), shrinkage)


def calibrate(logits: Doubles, labels: Floats) -> Head:
    """Scale and offset a class, (classes, 1) and (classes,), that make `logits` the likeliest.

    The binary cross-entropy of soft labels (images, classes), by Newton's method, its step halved
    until it helps. The scale is not negative; of a class without mass the offset is all.
    """
    q = labels.astype(np.float64)
    scales, offsets = np.zeros(q.shape[1]), np.zeros(q.shape[1])
    for c in range(q.shape[1]):
        scales[c], offsets[c] = _platt(logits[:, c], q[:, c])
    return Head(scales[:, None], offsets)


def _platt(x: Doubles, q: Doubles) -> tuple[float, float]:
    rate = np.clip(q.mean(), 1e-6, 1 - 1e-6)
    spread = x.std()
    start = np.array([0.0, np.log(rate / (1 - rate))])
    if spread < 1e-12:
        return 0.0, float(start[1])
    design = np.stack([x / spread, np.ones_like(x)], axis=1)
    theta, loss = start, _cross_entropy(design @ start, q)
    for _ in range(STEPS):
        p = _sigmoid(design @ theta)
        gradient = design.T @ (p - q) / len(q) + 1e-9 * theta
        curvature = (design.T * (p * (1 - p))) @ design / len(q) + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-6:
            ahead = theta - length * step
            new = _cross_entropy(design @ ahead, q)
            if new <= loss:
                break
            length /= 2
        if length <= 1e-6 or loss - new < 1e-12:
            break
        theta, loss = ahead, new
    if theta[0] < 0:  # it knows less than nothing: the rate alone
        return 0.0, float(start[1])
    return float(theta[0] / spread), float(theta[1])


def calibrated(head: Head, by: Head) -> Head:
    """The head whose logits are those of `head`, scaled and shifted by what `calibrate` gave."""
    return Head(head.weight * by.weight, head.bias * by.weight[:, 0] + by.bias)


def logits_of(head: Head, features: Floats) -> Doubles:
    """(images, classes) of features (images, dim)."""
    logits: Doubles = features.astype(np.float64) @ head.weight.T + head.bias
    return logits


def log_loss(logits: Doubles, labels: Floats) -> float:
    """Mean binary cross-entropy of soft labels, over images and classes."""
    return _cross_entropy(logits, labels.astype(np.float64))


class Fitted(NamedTuple):
    """head: calibrated. losses: what each of the shrinkages had out of fold.

    absent: the classes whose labels do not tell images apart: their logit is the same for all.
    """

    head: Head
    shrinkage: float
    losses: list[float]
    absent: list[int]


def fit_by_likelihood(
    parts: Iterable[Part],
    images: int,
    shrinkages: Sequence[float] = SHRINKAGES,
    sample: int = SAMPLE,
) -> Fitted:
    """The head at the shrinkage whose out-of-fold logits, calibrated, make the labels likeliest.

    parts: all `images` in order, looked at once. Image i is in fold i modulo FOLDS; of a great many
    the shrinkage and the calibration are chosen on about `sample`. No label is needed but those to
    be learned. Each fold's covariance is decomposed once for all shrinkages.
    """
    every = max(1, math.ceil(images / sample))
    of_fold: list[list[Sums]] = [[] for _ in range(FOLDS)]
    kept: list[list[Part]] = [[] for _ in range(FOLDS)]
    start = 0
    for features, labels in parts:
        place = np.arange(start, start + len(features))
        start += len(features)
        for fold in range(FOLDS):
            own = place % FOLDS == fold
            if own.any():
                more = sums_of(features[own], labels[own])
                of_fold[fold] = [add_up([*of_fold[fold], more])]
            some = own & (place // FOLDS % every == 0)
            kept[fold].append((features[some], labels[some]))
    folds = [sums[0] for sums in of_fold if sums]
    everything = add_up(folds)
    held_out = [tuple(map(np.concatenate, zip(*seen, strict=True))) for seen in kept[: len(folds)]]
    known = np.concatenate([labels for _, labels in held_out])
    others = [directions_of(everything.less(s) if len(folds) > 1 else everything) for s in folds]
    losses, by = [], None
    for shrinkage in shrinkages:
        said = np.concatenate(
            [
                logits_of(head_of(of, shrinkage), features)
                for of, (features, _) in zip(others, held_out, strict=True)
            ]
        )
        scaled = calibrate(said, known)
        losses.append(log_loss(said * scaled.weight[:, 0] + scaled.bias, known))
        if losses[-1] == min(losses):
            best, by = shrinkage, scaled
    if by is None:
        raise ValueError("the features are not finite")
    head = calibrated(head_of(directions_of(everything), best), by)
    absent = [int(c) for c in np.flatnonzero(~head.weight.any(axis=1))]
    return Fitted(head, best, losses, absent)


def add_up(sums: Iterable[Sums]) -> Sums:
    """Of all images, from those of parts."""
    images, *others = zip(*sums, strict=True)
    return Sums(sum(images), *(np.sum(each, axis=0) for each in others))


def _sigmoid(x: Doubles) -> Doubles:
    result: Doubles = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def _cross_entropy(logits: Doubles, labels: Doubles) -> float:
    return float((np.logaddexp(0, logits) - labels * logits).mean())
