"""A linear classifier of views, as PIAA (ICML 2026) has in place of text embeddings, restated.

In closed form on the teacher's own embeddings, by the soft labels that the text gives them
(`stages/method/closed_form.py`): every view counts, weighed by its labels, so there is no bank of
the surest views, on whose size the scale of the published classifier depends.
"""

from __future__ import annotations

import numpy as np

from stages.method.closed_form import (
    FOLDS,
    SHRINKAGES,
    Directions,
    Doubles,
    add_up,
    calibrate,
    directions_of,
    head_of,
    log_loss,
    logits_of,
    sums_of,
)
from stages.runtime.types import Floats, Integers

SAMPLE = 4000  # rows by which shrinkage and scale are chosen
EVERY = 3  # of the shrinkages is tried


def out_of_fold(features: Floats, labels: Floats, group: Integers) -> Doubles:
    """Calibrated logits (rows, classes) by heads that saw no row of the same group.

    features: (rows, dim); labels: (rows, classes) in [0, 1]; group: (rows,), such as the image that
    a view is of. The shrinkage is the one that makes the labels likeliest.
    """
    x = (features - features.mean(axis=0)).astype(np.float32)
    q = labels.astype(np.float32)
    fold = group % FOLDS
    sums = [sums_of(x[fold == k], q[fold == k]) for k in range(FOLDS)]
    others = [directions_of(add_up(sums).less(of_fold)) for of_fold in sums]
    some = np.random.default_rng(0).permutation(len(x))[:SAMPLE]
    losses = {}
    for shrinkage in SHRINKAGES[::EVERY]:
        said = said_by(others, x[some], fold[some], shrinkage)
        losses[shrinkage] = log_loss(_scaled(said, said, q[some]), q[some])
    best = min(losses, key=losses.__getitem__)
    said = said_by(others, x, fold, best)
    return _scaled(said, said[some], q[some])


def said_by(others: list[Directions], x: Floats, fold: Integers, shrinkage: float) -> Doubles:
    """Logits of each row by the head of the other folds."""
    heads = [head_of(of, shrinkage) for of in others]
    logits = np.empty((len(x), len(heads[0].bias)))
    for k, head in enumerate(heads):
        logits[fold == k] = logits_of(head, x[fold == k])
    return logits


def _scaled(logits: Doubles, some: Doubles, labels: Floats) -> Doubles:
    by = calibrate(some, labels)
    scaled: Doubles = logits * by.weight[:, 0] + by.bias
    return scaled
