"""The one training loop, of `warmup` and `train`: an epoch at a time, each kept before the next.

Everything random in an epoch follows from the seed, the stage and the epoch's number, so going on
after a kill needs the weights and the optimiser's state, and nothing else.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from stages.errors import UserError
from stages.images.augment import normalise, strong, weak
from stages.images.loading import Photographs, batches
from stages.job import Job
from stages.method.average_precision import mean_average_precision, published_training_map
from stages.method.objective import consistency_loss, label_loss
from stages.method.types import Floats
from stages.models.student import Student, logits_of
from stages.models.weights import Note
from stages.params import Optimiser
from stages.progress import meter, say
from stages.resume import write_durably

History = list[dict[str, float]]


class Recipe(NamedTuple):
    """What an epoch does. Without `consistency` no strong view is made."""

    epochs: int
    optimiser: Optimiser
    consistency: float
    jitter: tuple[float, ...]
    positive: float  # a label at least this large counts as positive for the training mAP


class State(NamedTuple):
    """All that the next epoch starts from: weights, Adam's moments, and the epochs so far."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    history: History


def train_epochs(
    job: Job,
    student: Student,
    note: Note,
    photographs: Photographs,
    labels: Floats,
    ids: list[str],
    recipe: Recipe,
    moments: dict[str, Tensor],
    seed: int,
    device: str,
) -> Iterator[State]:
    """Train `student` in place on `labels` (images, classes); yields the state after every epoch.

    Starts from the last epoch in the job's scratch, if there is one, whose states are yielded
    first. The two latest epochs are kept there.
    """
    student = student.to(device)
    optimiser = build_optimiser(student, recipe.optimiser)
    history: History = []
    resumed = _latest(job)
    if resumed is not None:
        student.load_state_dict(resumed.weights)
        moments, history = resumed.moments, resumed.history
        say(f"{job.stage}: resuming after epoch {len(history)} of {recipe.epochs}")
        yield resumed
    restore_moments(optimiser, student, moments)
    targets = torch.from_numpy(labels.copy())
    if len(history) < recipe.epochs:
        photographs.keep_decoded()
    with job.signals():
        for epoch in range(len(history), recipe.epochs):
            torch.manual_seed(_epoch_seed(seed, job.stage, epoch))
            title = f"{job.stage} epoch {epoch + 1}/{recipe.epochs}"
            losses, predicted = _one_epoch(
                student, optimiser, note, photographs, targets, ids, recipe, device, title
            )
            quality = 100 * mean_average_precision(labels >= recipe.positive, predicted)
            say(
                f"{job.stage}: epoch {epoch + 1}, label loss {losses[0]:.4f}, consistency loss "
                f"{losses[1]:.4f}, mAP against the labels {quality:.2f}"
            )
            history.append(
                {
                    "epoch": epoch + 1,
                    "label_loss": losses[0],
                    "consistency_loss": losses[1],
                    "train_mAP": quality,
                    "exact_mAP": published_training_map(labels, predicted),
                }
            )
            weights = {
                name: value.detach().cpu().clone() for name, value in student.state_dict().items()
            }
            state = State(weights, read_moments(optimiser, student), list(history))
            _keep(job, state)
            job.stop_if_asked(f"{epoch + 1} of {recipe.epochs} epochs are done and kept")
            yield state


def _one_epoch(
    student: Student,
    optimiser: torch.optim.Adam,
    note: Note,
    photographs: Photographs,
    targets: Tensor,
    ids: list[str],
    recipe: Recipe,
    device: str,
    title: str,
) -> tuple[tuple[float, float], Floats]:
    """One pass over the photographs in random order.

    Returns the mean label and consistency losses, and the logits (images, classes) that the weak
    views had when it was their turn.
    """
    order = torch.randperm(len(photographs)).tolist()
    predicted = torch.empty(targets.shape)
    label_total = consistency_total = 0.0
    done = 0
    student.train()
    with meter(title, "images", len(order)) as progress:
        for images in batches(photographs, order, recipe.optimiser.batch):
            rows = order[done : done + len(images)]
            logits = _forward(student, weak(images), note, device)
            loss = label_loss(logits, targets[rows].to(device))
            label_total += float(loss.detach()) * len(rows)
            if recipe.consistency > 0:
                strong_logits = _forward(student, strong(images, recipe.jitter), note, device)
                agreement = consistency_loss(logits, strong_logits)
                consistency_total += float(agreement.detach()) * len(rows)
                loss = loss + recipe.consistency * agreement  # Eq. 8
            if not torch.isfinite(loss):
                some = ", ".join(ids[row] for row in rows[:5])
                raise UserError(
                    f"the loss is {float(loss.detach())} at {some}, …: lower optimiser.lr in "
                    "params.yaml; the epochs before are kept"
                )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            predicted[rows] = logits.detach().float().cpu()
            done += len(rows)
            progress.advance(len(rows))
    return (label_total / done, consistency_total / done), predicted.numpy()


def build_optimiser(student: Student, params: Optimiser) -> torch.optim.Adam:
    """Adam, whose rate for the head is `head_lr_factor` times that of the backbone."""
    return torch.optim.Adam(
        [
            {"params": list(student.backbone.parameters()), "lr": params.lr},
            {"params": list(student.head.parameters()), "lr": params.lr * params.head_lr_factor},
        ]
    )


def read_moments(optimiser: torch.optim.Adam, student: Student) -> dict[str, Tensor]:
    """Adam's state, by kind and name of the parameter."""
    return {
        f"{kind}.{name}": value.detach().cpu().clone()
        for name, parameter in student.named_parameters()
        for kind, value in optimiser.state[parameter].items()
    }


def restore_moments(
    optimiser: torch.optim.Adam, student: Student, moments: dict[str, Tensor]
) -> None:
    """Put back what `read_moments` gave; nothing, if there is nothing."""
    for name, parameter in student.named_parameters():
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            if (key := f"{kind}.{name}") in moments:
                like = moments[key] if kind == "step" else parameter.detach()
                optimiser.state[parameter][kind] = torch.empty_like(like).copy_(moments[key])


def state_of_epoch(job: Job, epoch: int) -> State:
    """The state after `epoch` (from 1), one of the latest two."""
    state = _read(_file(job, epoch))
    if state is None:
        raise OSError(f"{_file(job, epoch)} cannot be read back")
    return state


def _forward(student: Student, images: Tensor, note: Note, device: str) -> Tensor:
    inputs = normalise(images.to(device), tuple(note["mean"]), tuple(note["std"]))
    return logits_of(student(inputs))


def _epoch_seed(seed: int, stage: str, epoch: int) -> int:
    entropy = [seed, zlib.crc32(stage.encode()), epoch]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _file(job: Job, epoch: int) -> Path:
    return job.scratch / "epochs" / f"{epoch:04d}.safetensors"


def _keep(job: Job, state: State) -> None:
    tensors = {f"weights.{name}": value for name, value in state.weights.items()}
    tensors |= {f"moments.{name}": value for name, value in state.moments.items()}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    epoch = len(state.history)
    write_durably(_file(job, epoch), save(contiguous, {"history": json.dumps(state.history)}))
    _file(job, epoch - 2).unlink(missing_ok=True)


def _latest(job: Job) -> State | None:
    """The newest state that can be read: one damaged by the disk costs an epoch, not the run."""
    for file in sorted((job.scratch / "epochs").glob("*.safetensors"), reverse=True):
        state = _read(file)
        if state is not None:
            return state
        say(f"{job.stage}: {file} is damaged; going back one epoch")
    return None


def _read(file: Path) -> State | None:
    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()  # what safe_open gives is no mapping: only this can be iterated
            tensors = {name: content.get_tensor(name) for name in names}
            history: History = json.loads(content.metadata()["history"])
    except Exception:  # safetensors raises its own error, and OSError, for a damaged file
        return None
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    return State(parts["weights"], parts["moments"], history)
