"""One training on several ranks: they share each batch, and take the steps of the whole.

Lightning Fabric joins the ranks that `runtime/ranks.py` placed.
"""

from __future__ import annotations

import inspect
import logging
import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stages.runtime.ranks import Place, place

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATIENCE = timedelta(days=1)  # how long a rank waits for the slowest; a dead one ends all at once


def share(batch: list[int], rank: int, processes: int) -> tuple[list[int], float]:
    """The rows of a batch that a rank looks at, and what its losses' sum over them counts.

    So weighted, the ranks' gradients have the mean of the whole batch's. A batch of fewer rows than
    ranks is looked at by all of them, so that its statistics stay its own.
    """
    if len(batch) < processes:
        return batch, 1 / len(batch)
    return batch[rank::processes], processes / len(batch)


def join(device: str, precision: str) -> Fabric:
    """Lightning Fabric at this process's place. precision: float32, or bfloat16: mixed."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    here = place()
    kind, _, number = device.partition(":")
    settings: dict[str, Any] = {"devices": [int(number or 0)] if kind == "cuda" else 1}
    settings["plugins"] = LightningEnvironment()
    if here.ranks > 1:
        _tell_torch(here)
        settings = {
            "devices": here.beside,
            "num_nodes": here.ranks // here.beside,
            "strategy": DDPStrategy(timeout=PATIENCE, **_no_buffers()),
            "plugins": TorchElasticEnvironment(),
        }
    settings["precision"] = "bf16-mixed" if precision == "bfloat16" else "32-true"
    joined = Fabric(accelerator=kind, **settings)
    joined.launch()
    return joined


def sum_over_ranks(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of each rank's `values`; they wait for each other."""
    summed = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed


def _tell_torch(here: Place) -> None:
    """The place in the variables of torch's launcher, where SLURM's gave it."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "localhost")
    job = int(os.environ.get("SLURM_JOB_ID", "0"))
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(15000 + job % 10000))
    os.environ |= {
        "RANK": str(here.rank),
        "WORLD_SIZE": str(here.ranks),
        "LOCAL_RANK": str(here.local),
        "LOCAL_WORLD_SIZE": str(here.beside),
        "GROUP_RANK": os.environ.get("SLURM_NODEID", "0"),
    }


def _no_buffers() -> dict[str, Any]:
    """The setting that keeps the ranks from sending buffers: frozen or synchronised, they agree."""
    from torch.nn.parallel import DistributedDataParallel

    known = inspect.signature(DistributedDataParallel.__init__).parameters
    newer = "forward_sync_buffers"
    return {newer if newer in known else "broadcast_buffers": False}
