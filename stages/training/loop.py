"""The one training loop, of `warmup` and `train`: an epoch at a time, each kept before the next.

Everything random in an epoch follows from the seed, the stage and the epoch's number, so going on
after a kill needs what a `State` holds, and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.images.prefetch import split_batches
from stages.method.average_precision import mean_average_precision, published_training_map
from stages.method.objective import Objective, consistency_loss
from stages.models.device import device
from stages.models.student import Student
from stages.runtime import machine, ranks
from stages.runtime.errors import UserError
from stages.runtime.job import Job
from stages.runtime.params import Optimiser
from stages.runtime.progress import meter, say
from stages.runtime.types import Floats
from stages.training.batches import (
    Augmentation,
    Batch,
    TrainingImages,
    mix_seeds,
    shuffled_batches,
)
from stages.training.distributed import join, share, sum_over_ranks
from stages.training.network import (
    build_optimiser,
    depends_on_batch,
    forward_views,
    prepare_batch_norm,
    set_training_mode,
)
from stages.training.state import (
    EpochRecord,
    History,
    State,
    copy_tensors,
    latest_checkpoint,
    read_moments,
    restore_moments,
    save_checkpoint,
)


class Recipe(NamedTuple):
    """What a training does. Without `consistency` no strong view is made.

    positive: a label at least this large counts as one for the training mAP.
    """

    epochs: int
    optimiser: Optimiser
    seed: int
    positive: float
    consistency: float = 0.0
    jitter: tuple[float, ...] = ()


class Trainer:
    """One training of one student, in place, on this rank.

    rows: of the index, one an image, in the order of the objective's labels.
    """

    def __init__(
        self, job: Job, student: Student, rows: pd.DataFrame, objective: Objective, recipe: Recipe
    ) -> None:
        self.job, self.student, self.rows, self.recipe = job, student, rows, recipe
        where = device()
        self.fabric = join(where, student.config.precision)
        prepare_batch_norm(student, job.ranks, where)
        self.objective = objective.to(where)
        self.optimiser = build_optimiser(student, self.objective, recipe.optimiser)
        self.network, self.stepper = self.fabric.setup(student, self.optimiser)
        self.history: History = []

    @property
    def learned(self) -> dict[str, Tensor]:
        """All that the optimiser moves, by name."""
        named = {f"objective.{name}": value for name, value in self.objective.named_parameters()}
        return {**dict(self.student.named_parameters()), **named}

    def states(self, moments: dict[str, Tensor]) -> Iterator[State]:
        """Train; yields the state after every epoch, from the last one that was kept on.

        moments: of Adam, to begin with if no epoch was kept. The two latest epochs are kept.
        """
        kept = self.resume()
        restore_moments(self.optimiser, self.learned, kept.moments if kept else moments)
        if kept:
            yield kept
        if len(self.history) == self.recipe.epochs:
            return
        jitter = self.recipe.jitter if self.recipe.consistency > 0 else None
        images = TrainingImages(self.rows, Augmentation(self.student.config.size, jitter))
        with self.job.signals():
            for number in range(len(self.history) + 1, self.recipe.epochs + 1):
                self.history.append(self.epoch(number, images))
                state = self.state()
                if self.job.rank == 0:
                    save_checkpoint(self.job, state)
                # any rank that was asked to stop stops them all, after the same epoch
                asked = torch.tensor([float(self.job.asked_to_stop)])
                if sum_over_ranks(self.fabric, asked) > 0:
                    self.job.stop(f"{number} of {self.recipe.epochs} epochs are done and kept")
                yield state

    def resume(self) -> State | None:
        """Put everything back as it was after the last epoch that was kept, if there is one."""
        kept = latest_checkpoint(self.job)
        epochs = 0 if kept is None else len(kept.history)
        if sum_over_ranks(self.fabric, torch.tensor([epochs])) != self.job.ranks * epochs:
            raise UserError(
                f"the ranks see different epochs in {self.job.scratch}: run `dvc repro` again"
            )
        if kept is None:
            return None
        self.student.load_state_dict(kept.weights)
        self.objective.load_state_dict(kept.objective)
        self.history = list(kept.history)
        say(f"{self.job.stage}: resuming after epoch {epochs} of {self.recipe.epochs}")
        return kept

    def state(self) -> State:
        """All that the next epoch starts from, copied."""
        return State(
            copy_tensors(self.student.state_dict()),
            read_moments(self.optimiser, self.learned),
            list(self.history),
            copy_tensors(self.objective.state_dict()),
        )

    def epoch(self, number: int, images: TrainingImages) -> EpochRecord:
        """One pass over the photographs, or more, and how it went; `number` counts from 1.

        The predictions that it is judged by are those that each image's weak view had when it was
        its turn: a pass of their own would cost as much as a third of the training.
        """
        stage = zlib.crc32(self.job.stage.encode())
        seed = mix_seeds(self.recipe.seed, stage, number - 1)
        torch.manual_seed(seed + self.job.rank)  # of what is random in the network itself
        how = self.recipe.optimiser
        batches = shuffled_batches(len(self.rows), how.batch, seed, how.epoch_steps)
        seen = sum(len(batch.rows) for batch in batches)
        place = ranks.place()
        views = images.views(batches, place)
        predicted = torch.zeros_like(self.objective.labels, dtype=torch.float32)
        totals = torch.zeros(2, device=self.fabric.device)
        set_training_mode(self.network, self.student.config.batch_norm)
        title = f"{self.job.stage} epoch {number}/{self.recipe.epochs}"
        with meter(title, "images", seen) as progress:
            for batch in batches:
                own, _ = share(batch.rows, place.rank, place.ranks)
                losses, logits = self.step(batch, number, *next(views))
                # a batch of fewer images than ranks was looked at by all: the first counts it
                if place.rank == 0 or len(own) < len(batch.rows):
                    totals += losses
                    if batch.last:
                        predicted[own] = logits
                progress.advance(len(batch.rows))
        predicted = sum_over_ranks(self.fabric, predicted)
        self.objective.end_epoch(predicted, number)
        label_loss, consistency = (sum_over_ranks(self.fabric, totals) / seen).tolist()
        return self._record(number, label_loss, consistency, predicted.cpu().numpy())

    def step(
        self, batch: Batch, number: int, weak_views: Tensor, strong_views: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One step of the optimiser.

        The views are of this rank's share of the batch. Returns its summed label and consistency
        losses, and its logits (images, classes), without their gradients.
        """
        rows, weight = share(batch.rows, self.job.rank, self.job.ranks)
        apart = depends_on_batch(self.student)
        totals = torch.zeros(2, device=self.fabric.device)
        predicted = []
        # CCD_MICRO_BATCH parts a share that memory has no room for: the gradients add up to the
        # same, and are sent to the other ranks once, with those of the last part
        parts = split_batches(range(len(rows)), machine.micro_batch() or len(rows))
        self.stepper.zero_grad()
        for part in parts:
            here = slice(part[0], part[-1] + 1)
            strong_part = None if strong_views is None else strong_views[here]
            with self.fabric.no_backward_sync(self.network, enabled=part is not parts[-1]):
                logits, strong_logits = forward_views(
                    self.network, weak_views[here], strong_part, apart
                )
                losses = torch.zeros(2, device=self.fabric.device)
                losses[0] = self.objective(logits, rows[here], number)
                if strong_logits is not None:
                    losses[1] = consistency_loss(logits, strong_logits)
                losses = losses * len(part)
                loss = losses[0] + self.recipe.consistency * losses[1]  # Eq. 8
                self.fabric.backward(loss * weight)
            totals += losses.detach()
            predicted.append(logits.detach())
            if not torch.isfinite(loss.detach()):
                self._refuse(float(loss.detach()), batch)
        self.stepper.step()
        return totals, torch.cat(predicted)

    def _record(
        self, number: int, label_loss: float, consistency: float, predicted: Floats
    ) -> EpochRecord:
        """How an epoch went; predicted: logits (images, classes)."""
        labels = self.objective.labels.clamp(min=0).float().cpu().numpy()  # -1 stands for absent
        quality = 100 * mean_average_precision(labels >= self.recipe.positive, predicted)
        say(
            f"{self.job.stage}: epoch {number}, label loss {label_loss:.4f}, consistency loss "
            f"{consistency:.4f}, mAP against the labels {quality:.2f}"
        )
        return {
            "epoch": number,
            "label_loss": label_loss,
            "consistency_loss": consistency,
            "train_mAP": quality,
            "exact_mAP": published_training_map(np.asarray(labels), predicted),
        }

    def _refuse(self, loss: float, batch: Batch) -> None:
        some = ", ".join(self.rows["image_id"].iloc[batch.rows[:5]])
        raise UserError(
            f"the loss is {loss} at {some}, …: lower optimiser.lr in params.yaml; the epochs "
            "before are kept"
        )
