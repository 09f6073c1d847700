"""Section 4: mean average precision."""

from __future__ import annotations

import numpy as np

from stages.runtime.types import Booleans, Floats


def average_precision(truth: Booleans | Floats, scores: Floats) -> float:
    """Of one ranking, in [0, 1]: the area under the stepwise curve, without interpolation.

    truth, scores: of one shape; where `truth` is NaN, the score is left out. NaN without a
    positive.
    """
    judged = ~np.isnan(truth)
    positive = truth[judged] > 0
    if not positive.any():
        return float("nan")
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(positive, scores[judged]))


def per_class_average_precision(truth: Booleans | Floats, scores: Floats) -> Floats:
    """Average precision of each class; NaN for a class without a positive.

    truth, scores: (images, classes).
    """
    return np.array([average_precision(t, s) for t, s in zip(truth.T, scores.T, strict=True)])


def mean_average_precision(truth: Booleans | Floats, scores: Floats) -> float:
    """Mean of the classes' average precisions; a class without a positive is left out.

    NaN if no class has one.
    """
    of_each = per_class_average_precision(truth, scores)
    defined = ~np.isnan(of_each)
    return float(of_each[defined].mean()) if defined.any() else float("nan")


def published_training_map(labels: Floats, scores: Floats) -> float:
    """The mAP by which the published script stops, in percent.

    labels, scores: (images, classes). Only a label of exactly 1 is a positive, and a class without
    one counts as 0.
    """
    of_each = per_class_average_precision(labels == 1, scores)
    return 100 * float(np.nan_to_num(of_each).mean())
