"""One stage on several devices: a process for each, a rank, on this machine or on several.

The engine is torch's: `CCD_DEVICES=8 dvc repro` has torch.distributed's launcher start the ranks of
the stages that use a model, and Lightning Fabric joins them for training. `CCD_LAUNCH` is the front
of another command that starts them, such as srun with its options. docs/scale.md shows both.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import Interrupted, UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LAUNCHED = "CCD_LAUNCHED"  # in the environment of what CCD_LAUNCH started
PATIENCE = timedelta(days=1)  # how long a rank waits for the slowest; a dead one ends all at once


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


def launch(stage: str) -> None:
    """Run the stage on ranks; `UserError` names the ones that failed."""
    command = [sys.executable, "-m", f"stages.{stage}"]
    if "CCD_LAUNCH" in os.environ:
        front = shlex.split(os.environ["CCD_LAUNCH"])
        code = subprocess.call([*front, *command], env=os.environ | {LAUNCHED: "1"})
        if code:
            raise UserError(
                f"{front[0]} ended with code {code}; it says above which rank failed. Nothing was "
                "published, finished work is kept: `dvc repro` goes on from there."
            )
        return
    _launch_here(command, _devices())


def _launch_here(command: list[str], devices: int) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
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
            "Nothing was published, finished work is kept: `dvc repro` goes on from there."
        ) from None
    except SignalException as stop:
        raise Interrupted(
            stop.sigval, "stopped; finished work is kept. `dvc repro` goes on from there."
        ) from None


def fabric(device: str, precision: str) -> Fabric:
    """Lightning Fabric at this process's place. precision: float32, or bfloat16: mixed."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    here = place()
    kind, _, number = device.partition(":")
    settings: dict[str, Any] = {"devices": [int(number or 0)] if kind == "cuda" else 1}
    if here.ranks > 1:
        # every rank has the same buffers: they are frozen, or synchronised by batch normalisation
        strategy = DDPStrategy(forward_sync_buffers=False, timeout=PATIENCE)
        nodes = here.ranks // here.beside
        settings = {"devices": here.beside, "num_nodes": nodes, "strategy": strategy}
    else:
        settings["plugins"] = LightningEnvironment()
    settings["precision"] = "bf16-mixed" if precision == "bfloat16" else "32-true"
    joined = Fabric(accelerator=kind, **settings)
    joined.launch()
    return joined


def _devices() -> int:
    text = os.environ.get("CCD_DEVICES", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"CCD_DEVICES={text}: expected a whole number, at least 1")
    return int(text)
