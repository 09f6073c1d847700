"""Where a method's labels come from: all of the truth, a part of it, or what CLIP says.

Each returns `observed` (images, classes) int8: 1 present, -1 absent, 0 unknown. `truth` is 0, 1, or
NaN where a pair is not judged; that is always unknown.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.runtime.types import Floats

Observed = npt.NDArray[np.int8]


def all_known(truth: Floats) -> Observed:
    """Every judged label."""
    return np.where(np.isnan(truth), 0, np.where(truth > 0, 1, -1)).astype(np.int8)


def some_known(truth: Floats, share: float, rng: np.random.Generator) -> Observed:
    """A random `share` of the labels, whatever they are (partial labels)."""
    return np.where(rng.random(truth.shape) < share, all_known(truth), 0).astype(np.int8)


def one_present(truth: Floats, rng: np.random.Generator) -> Observed:
    """One random positive an image, if it has any, and nothing else (single positive labels)."""
    drawn = np.where(truth > 0, rng.random(truth.shape), 0)
    return _at_most(drawn, 1)


def likeliest(scores: Floats, count: int = 1) -> Observed:
    """The `count` likeliest classes of an image, by CLIP, taken for present."""
    return _at_most(scores, count)


def likely(scores: Floats, threshold: float) -> Observed:
    """The classes at least that likely, by CLIP, taken for present."""
    return (scores >= threshold).astype(np.int8)


def with_unlikely(observed: Observed, scores: Floats, share: float = 0.5) -> Observed:
    """Of the unknown labels that `share` of all which is least likely by CLIP, taken for absent.

    For a loss of known labels alone, which would learn nothing from positives only.
    """
    order = np.argsort(scores, axis=1, kind="stable")[:, : int(share * scores.shape[1])]
    least = np.zeros(scores.shape, bool)
    np.put_along_axis(least, order, True, axis=1)
    return np.where(least & (observed == 0), -1, observed).astype(np.int8)


def _at_most(scores: Floats, count: int) -> Observed:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    chosen = np.zeros(scores.shape, np.int8)
    np.put_along_axis(chosen, order, np.int8(1), axis=1)
    return np.where(scores > 0, chosen, 0).astype(np.int8)
