"""The state after an epoch of training, on disk: what the next epoch starts from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from stages.job import Job
from stages.progress import say
from stages.resume import write_durably

History = list[dict[str, float]]


class State(NamedTuple):
    """All that the next epoch starts from: weights, Adam's moments, and the epochs so far.

    kept: what the objective keeps beside, and the mean student, if there is one.
    """

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    history: History
    kept: dict[str, Tensor]


def keep(job: Job, state: State) -> None:
    """Write the state after an epoch; the last but one before it is let go."""
    tensors = {f"weights.{name}": value for name, value in state.weights.items()}
    tensors |= {f"moments.{name}": value for name, value in state.moments.items()}
    tensors |= {f"kept.{name}": value for name, value in state.kept.items()}
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    epoch = len(state.history)
    write_durably(_file(job, epoch), save(contiguous, {"history": json.dumps(state.history)}))
    _file(job, epoch - 2).unlink(missing_ok=True)


def latest(job: Job) -> State | None:
    """The newest state that can be read: one damaged by the disk costs an epoch, not the run."""
    for file in sorted((job.scratch / "epochs").glob("*.safetensors"), reverse=True):
        state = _read(file)
        if state is not None:
            return state
        say(f"{job.stage}: {file} is damaged; going back one epoch")
    return None


def state_of_epoch(job: Job, epoch: int) -> State:
    """The state after `epoch` (from 1), one of the latest two."""
    state = _read(_file(job, epoch))
    if state is None:
        raise OSError(f"{_file(job, epoch)} cannot be read back")
    return state


def read_moments(optimiser: torch.optim.Adam, learned: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adam's state of the `learned` parameters, by kind and name."""
    return {
        f"{kind}.{name}": value.detach().cpu().clone()
        for name, parameter in learned.items()
        for kind, value in optimiser.state[parameter].items()
    }


def restore_moments(
    optimiser: torch.optim.Adam, learned: dict[str, Tensor], moments: dict[str, Tensor]
) -> None:
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
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}, "kept": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    return State(parts["weights"], parts["moments"], history, parts["kept"])
