"""Section 4: mean average precision."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import average_precision_score

from stages.method.types import Booleans, Floats


def per_class_average_precision(truth: Booleans, scores: Floats) -> Floats:
    """Average precision of each class, in [0, 1]; NaN for a class without a positive.

    truth, scores: (images, classes). The area under the stepwise curve, without interpolation.
    """
    return np.array(
        [
            average_precision_score(t, s) if t.any() else np.nan
            for t, s in zip(truth.T, scores.T, strict=True)
        ]
    )


def mean_average_precision(truth: Booleans, scores: Floats) -> float:
    """Mean of the classes' average precisions; a class without a positive is left out.

    NaN if no class has one.
    """
    defined = truth.any(axis=0)
    if not defined.any():
        return float("nan")
    return float(per_class_average_precision(truth[:, defined], scores[:, defined]).mean())


def micro_average_precision(truth: Booleans, scores: Floats) -> float:
    """Average precision of all (image, class) pairs as one ranking; NaN without a positive."""
    return (
        float(average_precision_score(truth.ravel(), scores.ravel()))
        if truth.any()
        else float("nan")
    )
