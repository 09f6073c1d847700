"""The student while it learns: its optimiser, its modes, and both views through it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from stages.method.objective import Objective
from stages.models.student import Student
from stages.runtime import machine
from stages.runtime.errors import UserError
from stages.runtime.params import Optimiser


def build_optimiser(
    student: Student, objective: Objective, settings: Optimiser
) -> torch.optim.Adam:
    """Adam, whose rate for the head, and what the objective learns, is `head_lr_factor` times."""
    fast = [*student.head.parameters(), *objective.parameters()]
    return torch.optim.Adam(
        [
            {"params": list(student.backbone.parameters()), "lr": settings.lr},
            {"params": fast, "lr": settings.lr * settings.head_lr_factor},
        ]
    )


def prepare_batch_norm(student: Student, ranks: int, device: str) -> None:
    """See that the statistics of a batch are those of the whole batch, or none."""
    if not depends_on_batch(student):
        return
    if machine.micro_batch() is not None:
        raise UserError(
            "CCD_MICRO_BATCH parts a batch, whose statistics the student normalises by: set "
            "student.batch_norm to frozen in params.yaml"
        )
    if ranks > 1 and not device.startswith("cuda"):
        raise UserError(
            "on several processors the student cannot normalise by the whole batch: set "
            "student.batch_norm to frozen in params.yaml, or CCD_DEVICES to 1"
        )
    if ranks > 1:
        from timm.layers.norm_act import convert_sync_batchnorm

        convert: Any = convert_sync_batchnorm  # torch's own would drop the activations in timm's
        convert(student)


def depends_on_batch(student: Student) -> bool:
    """Whether an image's logits in training depend on the others of its batch."""
    norms = any(isinstance(module, _BatchNorm) for module in student.modules())
    return norms and student.config.batch_norm == "batch"


def set_training_mode(network: nn.Module, batch_norm: str) -> None:
    """Training, but for the statistics of batch normalisation if they are frozen."""
    network.train()
    if batch_norm == "frozen":
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def forward_views(
    network: Any, weak_views: Tensor, strong_views: Tensor | None, apart: bool
) -> tuple[Tensor, Tensor | None]:
    """Logits of both views; in one pass, unless each has statistics of its own (`apart`).

    network: the student, as Fabric wraps it.
    """
    if strong_views is None:
        return network(weak_views), None
    if apart:
        return network(weak_views), network(strong_views)
    both = network(torch.cat([weak_views, strong_views]))
    return both[: len(weak_views)], both[len(weak_views) :]
