"""Section 3.4: when to stop, without a label."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def first_local_minimum(history: Sequence[float]) -> int | None:
    """The epoch at which the gain in training mAP has its first local minimum.

    history: the mAP of the training predictions against the pseudo-labels, one an epoch since the
    labels were updated. The gain of epoch e is history[e] - history[e-1]; the minimum is at the
    first e whose successor gains more. Returns its position in `history`, or None as long as the
    gain keeps falling.
    """
    gains = [after - before for before, after in pairwise(history)]
    for epoch, (gain, following) in enumerate(pairwise(gains), start=1):
        if following > gain:
            return epoch
    return None


def published_stop(history: Sequence[float]) -> int | None:
    """The epoch that the published script keeps: the one after the minimum, if it comes.

    history: the mAP of the training predictions in percent, one an epoch since the very first.
    The gain of the first epoch counts as 100. The script keeps the first epoch that gains more
    than the one before it. Returns its position in `history`, or None.
    """
    gains = [100.0, *(after - before for before, after in pairwise(history))]
    for epoch, (before, gain) in enumerate(pairwise(gains), start=1):
        if gain > before:
            return epoch
    return None
