"""SPARC (CVPR 2025): scores alone, standardised, and prompts of two classes at once.

Its compound prompts come from a language model; here they are the pairs of the user's own classes
that the teacher itself takes for likely together. What is fitted is fitted to training images, so
that one image can be scored. `simple` (images, classes) and `compound` (images, pairs) are cosines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from stages.runtime.types import Floats

TOP = 3  # classes of an image that may be seen together
PARTNERS = 10  # of a class, at most
TINY = 1e-12

Pair = tuple[int, int]
# scores (images, classes) of simple and compound cosines
Scores = Callable[[Floats, Floats], Floats]


class Standards(NamedTuple):
    """Of a column: its mean and deviation over the pool."""

    mean: Floats
    deviation: Floats

    def of(self, values: Floats) -> Floats:
        """The values, standardised."""
        scaled: Floats = (values - self.mean) / np.maximum(self.deviation, TINY)
        return scaled


def pairs_seen(simple: Floats, top: int = TOP, partners: int = PARTNERS) -> list[Pair]:
    """The pairs of classes that are oftenest both among an image's `top` likeliest, in order."""
    classes = simple.shape[1]
    among = np.zeros(simple.shape)
    np.put_along_axis(among, np.argsort(-simple, axis=1, kind="stable")[:, :top], 1.0, axis=1)
    together = among.T @ among
    np.fill_diagonal(together, 0)
    chosen = set()
    for c in range(classes):
        for other in np.argsort(-together[c], kind="stable")[:partners]:
            if together[c, other] > 0:
                chosen.add((min(c, int(other)), max(c, int(other))))
    return sorted(chosen)


def by_image(values: Floats, simple: Floats) -> Floats:
    """Cosines (images, n) less the mean of the image's `simple` ones, over their deviation."""
    mean, deviation = simple.mean(axis=1, keepdims=True), simple.std(axis=1, keepdims=True)
    scaled: Floats = (values - mean) / np.maximum(deviation, TINY)  # of one class there is none
    return scaled


def standards(values: Floats) -> Standards:
    """Of the columns of a pool (images, n)."""
    return Standards(values.mean(axis=0), values.std(axis=0))


def fit(simple: Floats, compound: Floats, pairs: list[Pair]) -> Scores:
    """What the scores of a training pool make of any scores.

    A class's compound scores, sorted within the image, and its own are weighed by the first
    principal component over the pool; the mean of that and of the class's own score counts.
    """
    of_simple = standards(by_image(simple, simple))
    of_compound = standards(by_image(compound, simple))
    own = of_simple.of(by_image(simple, simple))
    beside = of_compound.of(by_image(compound, simple))
    weights = [first_component(ranked(own, beside, pairs, c)) for c in range(simple.shape[1])]

    def score(simple: Floats, compound: Floats) -> Floats:
        own = of_simple.of(by_image(simple, simple))
        beside = of_compound.of(by_image(compound, simple))
        columns = [ranked(own, beside, pairs, c) @ weight for c, weight in enumerate(weights)]
        fused: Floats = (np.stack(columns, axis=1) + own) / 2
        return fused

    return score


def ranked(own: Floats, beside: Floats, pairs: list[Pair], c: int) -> Floats:
    """(images, 1 + n): an image's compound scores of class `c`, ascending, and its own, last."""
    of_class = [place for place, pair in enumerate(pairs) if c in pair]
    return np.hstack([np.sort(beside[:, of_class], axis=1), own[:, c : c + 1]])


def first_component(values: Floats) -> Floats:
    """The first principal component (n,) of (images, n), its sum positive, absolute sum 1."""
    _, _, directions = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    first = directions[0] * (np.sign(directions[0].mean()) or 1.0)
    weights: Floats = first / np.abs(first).sum()
    return weights
