"""Eq. 8: the two losses of the student."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of `logits` (images, classes) to soft `labels` in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, labels)


def consistency_loss(weak_logits: Tensor, strong_logits: Tensor) -> Tensor:
    """Binary cross-entropy of the strong view to the weak view's probabilities.

    No gradient flows through the weak view: it plays the teacher here.
    """
    return F.binary_cross_entropy_with_logits(strong_logits, weak_logits.detach().sigmoid())
