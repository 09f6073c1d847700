"""Eq. 8: the two losses of the student."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from stages.runtime.types import Floats


def label_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of `logits` (images, classes) to soft `labels` in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, labels)


def consistency_loss(weak_logits: Tensor, strong_logits: Tensor) -> Tensor:
    """Binary cross-entropy of the strong view to the weak view's probabilities.

    No gradient flows through the weak view: it plays the teacher here.
    """
    return F.binary_cross_entropy_with_logits(strong_logits, weak_logits.detach().sigmoid())


def sharpen(labels: Floats, power: float) -> Floats:
    """Soft labels (images, classes), each raised to a power: above 1 lets doubtful ones count less.

    Of this project; the paper's labels are learned as they are.
    """
    return labels if power == 1 else labels**power


class Objective(nn.Module):
    """What the labels ask of the student's logits: binary cross-entropy, in CCD.

    labels (images, classes). Others derive from it. What they keep beside, such as labels that
    change, are buffers; what is learned with the student, at the head's rate, are parameters. Both
    are in `state_dict`, and so survive a kill.
    """

    labels: Tensor

    def __init__(self, labels: Tensor) -> None:
        super().__init__()
        self.register_buffer("labels", labels, persistent=False)

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """The loss, a mean over some images and the classes; `epoch` counts from 1."""
        return label_loss(logits, self.labels[rows])

    def end_epoch(self, predicted: Tensor, epoch: int) -> None:
        """An epoch has ended, in which the images had these logits (images, classes)."""
