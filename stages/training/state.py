"""The state after an epoch of training, on disk: what the next epoch starts from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from safetensors.torch import load, save
from torch import Tensor

from stages.runtime.errors import UserError
from stages.runtime.job import Job
from stages.runtime.progress import say
from stages.runtime.resume import write_durably

Tensors = dict[str, Tensor]


class EpochRecord(TypedDict):
    """A line of the history. train_mAP: of the epoch's predictions against the labels; exact_mAP:
    as the published script counts.
    """

    epoch: int
    label_loss: float
    consistency_loss: float
    train_mAP: float  # as the column of the history is called
    exact_mAP: float


History = list[EpochRecord]


class State(NamedTuple):
    """All that the next epoch starts from.

    weights, and moments of Adam, by name; history: the epochs so far; objective: what it keeps.
    """

    weights: Tensors
    moments: Tensors
    history: History
    objective: Tensors


def first_state(weights: Tensors, moments: Tensors | None = None) -> State:
    """Before the first epoch."""
    return State(weights, moments or {}, [], {})


def save_checkpoint(job: Job, state: State) -> None:
    """Write the state after an epoch; the last but one before it is let go."""
    tensors = {
        f"{part}.{name}": value.contiguous()
        for part in ("weights", "moments", "objective")
        for name, value in getattr(state, part).items()
    }
    content = save(tensors, {"history": json.dumps(state.history)})
    epoch = len(state.history)
    digest = hashlib.sha256(content).hexdigest()
    write_durably(job.scratch / "epochs" / f"{epoch:04d}.{digest}.safetensors", content)
    for older in _files(job, epoch - 2):
        older.unlink(missing_ok=True)


def latest_checkpoint(job: Job) -> State | None:
    """The newest state that can be read: one damaged by the disk costs an epoch, not the run."""
    for file in reversed(_files(job)):
        state = _read(file)
        if state is not None:
            return state
        say(f"{job.stage}: {file} is damaged; going back one epoch")
    return None


def read_checkpoint(job: Job, epoch: int) -> State:
    """The state after `epoch` (from 1), one of the latest two."""
    for file in _files(job, epoch):
        if (state := _read(file)) is not None:
            return state
    raise UserError(f"epoch {epoch} in {job.scratch} cannot be read back: run `dvc repro` again")


def copy_tensors(tensors: Tensors) -> Tensors:
    """Copies on the CPU, which later steps leave alone."""
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def read_moments(optimiser: torch.optim.Adam, learned: Tensors) -> Tensors:
    """Adam's state of the `learned` parameters, by kind and name."""
    return copy_tensors(
        {
            f"{kind}.{name}": value
            for name, parameter in learned.items()
            for kind, value in optimiser.state[parameter].items()
        }
    )


def restore_moments(optimiser: torch.optim.Adam, learned: Tensors, moments: Tensors) -> None:
    """Put back what `read_moments` gave; nothing, if there is nothing."""
    for name, parameter in learned.items():
        for kind in ("step", "exp_avg", "exp_avg_sq"):
            if (key := f"{kind}.{name}") in moments:
                like = moments[key] if kind == "step" else parameter.detach()
                optimiser.state[parameter][kind] = torch.empty_like(like).copy_(moments[key])


def _files(job: Job, epoch: int | None = None) -> list[Path]:
    """The kept states, or those of one epoch, oldest first; a name has its content's digest."""
    number = "*" if epoch is None else f"{epoch:04d}"
    return sorted((job.scratch / "epochs").glob(f"{number}.*.safetensors"))


def _read(file: Path) -> State | None:
    """The state in a file; None if the content is not what its name says."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != file.suffixes[0].removeprefix("."):
        return None
    size = int.from_bytes(content[:8], "little")  # of the header, as safetensors has it
    history: History = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["history"])
    tensors = load(content)
    parts: dict[str, Tensors] = {"weights": {}, "moments": {}, "objective": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return State(parts["weights"], parts["moments"], history, parts["objective"])
