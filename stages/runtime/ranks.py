"""One stage on several devices: a process for each, a rank, on this machine or on several.

The engine is torch's: `CCD_DEVICES=8 dvc repro` has torch.distributed's launcher start the ranks of
the stages that use a model; `training/distributed.py` joins them for training. `CCD_LAUNCH` is the
front of another command that starts them, such as srun with its options. docs/scale.md shows both.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from types import FrameType
from typing import NamedTuple

from stages.runtime.errors import Interrupted, UserError

LAUNCHED = "CCD_LAUNCHED"  # in the environment of what CCD_LAUNCH started
FINGERPRINT = "CCD_FINGERPRINT"  # of the run that a rank was started for
THREADS = "CCD_THREADS"  # the user's OMP_NUM_THREADS: launchers choose one if there is none
FINISHING = 300  # seconds that ranks have to finish the work at hand after a signal
GOES_ON = "Nothing was published, finished work is kept: `dvc repro` goes on from there."


class Place(NamedTuple):
    """This process among the ranks; `local` and `beside` count those of its machine."""

    rank: int
    ranks: int
    local: int
    beside: int


def place() -> Place:
    """From the environment: of torch's launcher, or of SLURM if CCD_LAUNCH was used."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return Place(*(int(os.environ[name]) for name in names))
    if LAUNCHED in os.environ and "SLURM_PROCID" in os.environ:
        rank, ranks, local = (
            int(os.environ[f"SLURM_{name}"]) for name in ("PROCID", "NTASKS", "LOCALID")
        )
        return Place(rank, ranks, local, ranks // int(os.environ["SLURM_NNODES"]))
    return Place(0, 1, 0, 1)


def wanted() -> bool:
    """Whether this process should start ranks and wait for them, rather than do the work."""
    if LAUNCHED in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:
        return False
    return _devices() > 1 or "CCD_LAUNCH" in os.environ


def launch(stage: str, fingerprint: str) -> None:
    """Run the stage on ranks; `UserError` names the ones that failed."""
    command = [sys.executable, "-m", f"stages.{stage}"]
    os.environ[FINGERPRINT] = fingerprint
    os.environ[THREADS] = os.environ.get("OMP_NUM_THREADS", "")
    if "CCD_LAUNCH" in os.environ:
        os.environ[LAUNCHED] = "1"
        _launch_by(shlex.split(os.environ["CCD_LAUNCH"]), command)
    else:
        _launch_here(command, _devices())


def _launch_by(front: list[str], command: list[str]) -> None:
    """Start the ranks with another launcher, and pass on the signals that ask to stop."""
    try:
        process = subprocess.Popen([*front, *command])
    except OSError as error:
        raise UserError(f"CCD_LAUNCH: {front[0]} cannot be run: {error.strerror}") from None
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        process.terminate()  # srun takes a first interrupt for a question

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    code = process.wait()
    if asked and code:
        raise Interrupted(asked[0], f"stopped. {GOES_ON}")
    if code:
        raise UserError(
            f"{front[0]} ended with code {code}; it says above which rank failed. {GOES_ON}"
        )


def _launch_here(command: list[str], devices: int) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // devices)))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(FINISHING))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id="ccd",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, command[0])(*command[1:])
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        how = first.signal_name() if first.exitcode < 0 else f"exit code {first.exitcode}"
        raise UserError(
            f"rank {first.local_rank} of {devices} ended with {how}, and the others were stopped. "
            f"{GOES_ON}"
        ) from None
    except SignalException as stop:
        raise Interrupted(stop.sigval, f"stopped. {GOES_ON}") from None


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def own_cores() -> int:
    """This rank's share of them; SLURM gives each task its own."""
    return max(1, cores() // place().beside) if "TORCHELASTIC_RUN_ID" in os.environ else cores()


def _devices() -> int:
    text = os.environ.get("CCD_DEVICES", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"CCD_DEVICES={text}: expected a whole number, at least 1")
    return int(text)
