"""The state after an epoch of training, on disk: what the next epoch starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

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

    weights, and moments of Adam, by name; history: the epochs so far; objective: what it keeps;
    ema: the mean student, if there is one.
    """

    weights: Tensors
    moments: Tensors
    history: History
    objective: Tensors
    ema: Tensors


def first_state(weights: Tensors, moments: Tensors | None = None) -> State:
    """Before the first epoch."""
    return State(weights, moments or {}, [], {}, {})


def save_checkpoint(job: Job, state: State) -> None:
    """Write the state after an epoch; the last but one before it is let go."""
    tensors = {
        f"{part}.{name}": value.contiguous()
        for part in ("weights", "moments", "objective", "ema")
        for name, value in getattr(state, part).items()
    }
    epoch = len(state.history)
    write_durably(_file(job, epoch), save(tensors, {"history": json.dumps(state.history)}))
    _file(job, epoch - 2).unlink(missing_ok=True)


def latest_checkpoint(job: Job) -> State | None:
    """The newest state that can be read: one damaged by the disk costs an epoch, not the run."""
    for file in sorted((job.scratch / "epochs").glob("*.safetensors"), reverse=True):
        state = _read(file)
        if state is not None:
            return state
        say(f"{job.stage}: {file} is damaged; going back one epoch")
    return None


def read_checkpoint(job: Job, epoch: int) -> State:
    """The state after `epoch` (from 1), one of the latest two."""
    state = _read(_file(job, epoch))
    if state is None:
        raise OSError(f"{_file(job, epoch)} cannot be read back")
    return state


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


def _file(job: Job, epoch: int) -> Path:
    return job.scratch / "epochs" / f"{epoch:04d}.safetensors"


def _read(file: Path) -> State | None:
    try:
        with safe_open(file, framework="pt") as content:
            names = content.keys()  # what safe_open gives is no mapping: only this can be iterated
            tensors = {name: content.get_tensor(name) for name in names}
            history: History = json.loads(content.metadata()["history"])
    except Exception:  # safetensors raises its own error, and OSError, for a damaged file
        return None
    parts: dict[str, Tensors] = {"weights": {}, "moments": {}, "objective": {}, "ema": {}}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = value
    return State(parts["weights"], parts["moments"], history, parts["objective"], parts["ema"])
