"""A student of another build: any backbone, and a head that says more than logits to its objective.

What the pipeline's training loop asks of a student it has; what a head finds on the way, and its
objective needs, the head keeps, of the latest pass.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from experiments.baseline import trained
from experiments.patches import enlarged
from experiments.results import Data, judged
from stages.images.normalise import normalise
from stages.images.prefetch import load_global_views, split_batches
from stages.method.objective import Objective
from stages.models.device import device, move
from stages.models.student import Student, StudentConfig
from stages.models.teacher import Teacher
from stages.runtime.job import Job
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.runtime.types import Floats

RATE = 1e-3  # of a head, whatever the backbone's: Adam's own


class Network(Student):
    """backbone: normalised images to feature maps; head: those to logits (n, classes)."""

    def __init__(self, backbone: nn.Module, head: nn.Module, config: StudentConfig) -> None:
        super().__init__(backbone, 1, config)
        self.add_module("head", head)  # in the place of the 1x1 convolution

    def forward(self, views: Tensor) -> Tensor:
        """Logits (n, classes) of uint8 views (n, 3, h, w)."""
        return self.logits(views)

    def logits(self, views: Tensor) -> Tensor:
        """The same, of the views as they are."""
        where = str(next(self.head.parameters()).device)
        images = normalise(move(views, where), self.config.mean, self.config.std)
        head: Any = self.head
        logits: Tensor = head(self.backbone(images).float())
        return logits.float()

    @torch.no_grad()
    def predict(self, rows: pd.DataFrame, batch: int) -> Floats:
        """Logits (images, classes) of the index's `rows`."""
        self.eval().to(device())
        batches = split_batches(range(len(rows)), batch)
        said = [self.logits(views) for views in load_global_views(rows, self.config.size, batches)]
        return torch.cat(said).float().cpu().numpy()


def config_of(teacher: Teacher, params: Params, student: StudentConfig) -> StudentConfig:
    """A student's configuration, with what the eyes of a frozen teacher need."""
    size = enlarged(params.global_clip.view_size)
    seen = {"mean": teacher.mean, "std": teacher.std, "size": size, "batch_norm": "batch"}
    return student.model_copy(update=seen)


def train_and_judge(
    job: Job, params: Params, data: Data, network: Network, objective: Objective
) -> dict[str, float]:
    """How good a network is on held-out images, once it is trained."""
    judge_by, own = data.judged, params.optimiser
    how = own.model_copy(update={"head_lr_factor": RATE / own.lr})
    state = trained(job, params.model_copy(update={"optimiser": how}), data, network, objective)
    network.load_state_dict(state.weights)
    found = judged(judge_by, network.predict(data.held_out, own.batch))
    say(f"{job.stage}: mAP {found['mAP']}")
    return {"epochs": len(state.history)} | found
