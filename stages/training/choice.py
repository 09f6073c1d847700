"""Which head a classifier ends with: the one that makes labels of held-out images likeliest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.method.closed_form import log_loss
from stages.models.device import device
from stages.models.student import Student, StudentConfig, build_student, logits_of, set_weights
from stages.runtime.types import Booleans, Floats
from stages.training.head import looked_at
from stages.training.state import Tensors


def held_out(images: int, share: float) -> Booleans:
    """(images,): True of a share of them, spread evenly over their order."""
    before = np.floor(np.arange(images + 1) * share + 1e-9)
    taken: Booleans = np.diff(before) > 0
    return taken


def held_out_losses(
    stage: str,
    config: StudentConfig,
    candidates: dict[str, Tensors],
    rows: pd.DataFrame,
    labels: Floats,
) -> pd.DataFrame:
    """How unlikely each of some students makes the labels of images that it did not learn from.

    candidates: their weights, by what they are called. rows: of the index, one an image; labels
    (images, classes) in [0, 1]. A line a student: `head`, its mean binary cross-entropy
    `held_out_loss`, and `kept`, which is 1 for the first of the least and 0 for the others.
    """
    losses = []
    for name, weights in candidates.items():
        student = build_student(config)
        set_weights(student, weights)
        student.to(device()).eval()

        def said(views: Tensor, by: Student = student) -> Tensor:
            return logits_of(by.maps(views))

        logits = torch.cat([*looked_at(f"{stage} {name}", student, rows, said)])
        losses.append(log_loss(logits.numpy().astype(np.float64), labels))
    table = pd.DataFrame({"head": list(candidates), "held_out_loss": losses})
    table["kept"] = (table.index == int(np.argmin(losses))).astype(int)
    return table
