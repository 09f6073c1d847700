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
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.runtime.types import Floats

SHRINKAGES = tuple(float(s) for s in np.logspace(-4, 1.5, 40))
LEAST_MASS = 1e-6  # of a class's labels, and of their complements, or there is no head for it
FOLDS = 4
SAMPLE = 20_000  # images by which the shrinkage is chosen
BLOCK = 4096  # images whose products are made at once
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
    """The axes (dim, dim) of a covariance and their variances; of each class both means.

    apart: the difference of the means (classes, dim), along the axes.
    """

    axes: Doubles
    variances: Doubles
    with_class: Doubles
    without: Doubles
    apart: Doubles


class Head(NamedTuple):
    """weight (classes, dim) and bias (classes,); both zero of a class whose labels have no mass."""

    weight: Doubles
    bias: Doubles


def sums_of(features: Floats, labels: Floats) -> Sums:
    """The sums of some images: features (images, dim), labels (images, classes) in [0, 1].

    The products, nearly all of the work, are in the features' own precision; single is enough for
    features whose mean is near zero.
    """
    f, q = features, labels.astype(features.dtype)
    sums = (f.sum(axis=0, dtype=np.float64), f.T @ f, q.sum(axis=0, dtype=np.float64), q.T @ f)
    return Sums(len(f), *(each.astype(np.float64) for each in sums))


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
    apart = (with_class - without) @ axes
    return Directions(axes, np.maximum(variances, 0), with_class, without, apart)


def head_of(of: Directions, shrinkage: float) -> Head:
    """The head, before its logits are calibrated."""
    scale = of.variances + shrinkage * max(of.variances.mean(), 1e-12)
    weight = (of.apart / scale) @ of.axes.T
    bias = -0.5 * (weight * (of.with_class + of.without)).sum(axis=1)
    return Head(weight, bias)


def fit(features: Floats, labels: Floats, shrinkage: float) -> Head:
    """The head of all images at once, not calibrated: see the module."""
    return head_of(directions_of(sums_of(features.astype(np.float64), labels)), shrinkage)


def calibrate(
    logits: Floats | Doubles, labels: Floats, boost: float = 1.0, weights: Doubles | None = None
) -> Head:
    """Scale and offset a class, (classes, 1) and (classes,), that make `logits` the likeliest.

    logits: (images, classes), or maps (images, classes, cells) that after scale and offset are
    boosted where they are positive, and then pooled. The binary cross-entropy of soft labels
    (images, classes), by Newton's method, its step halved until it helps. weights: how much each
    image counts for a class, (images, classes), all alike if None. The scale is not negative; of a
    class without mass the offset is all.
    """
    q = labels.astype(np.float64)
    maps = logits.reshape(*logits.shape[:2], -1)
    scales, offsets = np.zeros(q.shape[1]), np.zeros(q.shape[1])
    for c in range(q.shape[1]):
        counts = np.ones(len(q)) if weights is None else weights[:, c]
        scales[c], offsets[c] = _platt(maps[:, c].astype(np.float64), q[:, c], counts, boost)
    return Head(scales[:, None], offsets)


def _platt(x: Doubles, q: Doubles, counts: Doubles, boost: float) -> tuple[float, float]:
    """Scale and offset of one class; x: (images, cells), counts: how much each image counts."""
    total = counts.sum()
    rate = np.clip((counts * q).sum() / total, 1e-6, 1 - 1e-6)
    offset = np.log(rate / (1 - rate))
    offset /= boost if offset > 0 else 1
    spread = x.std()
    if spread < 1e-12:
        return 0.0, float(offset)
    x = x / spread

    def look(theta: Doubles) -> tuple[float, Doubles, Doubles]:
        """The loss, and of each image its logit and what that changes by, (images, 2)."""
        maps = theta[0] * x + theta[1]
        slope = np.where(maps > 0, boost, 1.0)
        logit = (slope * maps).mean(axis=1)
        changes = np.stack([(slope * x).mean(axis=1), slope.mean(axis=1)], axis=1)
        return float((counts * _cross_entropies(logit, q)).sum() / total), logit, changes

    theta = np.array([0.0, offset])
    loss, logit, changes = look(theta)
    for _ in range(STEPS):
        p = _sigmoid(logit)
        gradient = changes.T @ (counts * (p - q)) / total + 1e-9 * theta
        curvature = (changes.T * (counts * (p * (1 - p)))) @ changes / total + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while length > 1e-6:
            ahead = theta - length * step
            new, *there = look(ahead)
            if new <= loss:
                break
            length /= 2
        if length <= 1e-6 or loss - new < 1e-12:
            break
        theta, loss, (logit, changes) = ahead, new, there
    if theta[0] < 0:  # it knows less than nothing: the rate alone
        return 0.0, float(offset)
    return float(theta[0] / spread), float(theta[1])


def calibrated(head: Head, by: Head) -> Head:
    """The head whose logits are those of `head`, scaled and shifted by what `calibrate` gave."""
    return Head(head.weight * by.weight, head.bias * by.weight[:, 0] + by.bias)


def logits_of(head: Head, features: Floats) -> Doubles:
    """(images, classes) of features (images, dim), multiplied in the features' own precision."""
    logits: Doubles = features @ head.weight.T.astype(features.dtype) + head.bias
    return logits


def log_loss(logits: Doubles, labels: Floats) -> float:
    """Mean binary cross-entropy of soft labels, over images and classes."""
    return float(_cross_entropies(logits, labels.astype(np.float64)).mean())


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
    start, origin = 0, None
    for given, labels in in_blocks(parts):
        origin = given.mean(axis=0, dtype=np.float64) if origin is None else origin
        features = given - np.float32(origin)
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
    assert origin is not None
    head = Head(head.weight, head.bias - head.weight @ origin.astype(np.float32))
    absent = [int(c) for c in np.flatnonzero(~head.weight.any(axis=1))]
    return Fitted(head, best, losses, absent)


def in_blocks(parts: Iterable[Part]) -> Iterator[Part]:
    """The same images in blocks of BLOCK, so that sums do not depend on the parts they came in."""
    waiting: list[Part] = []
    held = 0
    for part in parts:
        waiting.append(part)
        held += len(part[0])
        while held >= BLOCK:
            features, labels = (np.concatenate(values) for values in zip(*waiting, strict=True))
            yield features[:BLOCK], labels[:BLOCK]
            waiting, held = [(features[BLOCK:], labels[BLOCK:])], held - BLOCK
    if held:
        features, labels = (np.concatenate(values) for values in zip(*waiting, strict=True))
        yield features, labels


def add_up(sums: Iterable[Sums]) -> Sums:
    """Of all images, from those of parts."""
    images, *others = zip(*sums, strict=True)
    return Sums(sum(images), *(np.sum(each, axis=0) for each in others))


def _sigmoid(x: Doubles) -> Doubles:
    result: Doubles = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def _cross_entropies(logits: Doubles, labels: Doubles) -> Doubles:
    each: Doubles = np.logaddexp(0, logits) - labels * logits
    return each
