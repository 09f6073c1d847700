"""The machine's shape: what may differ between a laptop and a cluster.

It is no part of a result: device, batch and block change at most its last bits, the others nothing.

Read from the environment, never from `params.yaml`, so that `dvc.lock` is the same everywhere:

    CCD_DEVICE    cpu, cuda, cuda:1, mps            (a GPU if there is one)
    CCD_DEVICES   how many of them, a process each  (1; docs/scale.md, also for CCD_LAUNCH)
    CCD_WORKERS   processes that decode images      (a rank's cores but two, at most 8)
    CCD_BATCH     images in one forward pass        (what half of a GPU's memory holds, or 2 MP)
    CCD_BLOCK     images in one resumable block     (4096 on a GPU, 256 on a CPU)
    CCD_MICRO_BATCH  images in one pass of training, for want of memory  (a process's share)
    CCD_CACHE_GB  memory for decoded images         (4)
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from stages import ranks
from stages.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

CPU_PIXELS = 2_000_000

# views have many sizes, each of which oneDNN prepares every layer for: keep what it made
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


def device() -> str:
    import torch

    here = ranks.place()
    asked = os.environ.get("CCD_DEVICE")
    if asked is None:
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    if here.ranks > 1 and ":" in asked:
        raise UserError(f"CCD_DEVICE={asked}: several ranks cannot share one device; say cuda")
    if asked == "cuda" and here.ranks > 1:
        asked = f"cuda:{here.local}"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"CCD_DEVICE={asked}: {' '.join(str(error).split())[:200]}") from None
    if asked.startswith("cuda:"):
        torch.cuda.set_device(asked)  # what does not name one, as pinned memory, takes this
    return asked


def workers() -> int:
    return _number("CCD_WORKERS", min(8, max(0, ranks.own_cores() - 2)), least=0)


def batch(device: str, side: int, forward: Callable[[int], object]) -> int:
    """Images of side x side in one forward pass.

    A processor gains nothing beyond a megapixel or two. On a GPU it is what fits: `forward` makes a
    pass of so many, to see what they take.
    """
    if not device.startswith("cuda") or "CCD_BATCH" in os.environ:
        return _number("CCD_BATCH", min(64, _power_of_two(CPU_PIXELS / side**2)), least=1)
    import torch

    peaks = []
    for images in (1, 2):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        forward(images)
        peaks.append(torch.cuda.max_memory_allocated(device))
    return largest_batch(torch.cuda.mem_get_info(device)[1], *peaks)


def largest_batch(memory: int, one: int, two: int) -> int:
    """The largest power of two of images, at most 128, that takes half of `memory`.

    one, two: bytes that one and two images take. Half, because a library's working space grows in
    leaps; a power of two, so that the same card gives the same batches; no more, since it gains
    nothing, and a layer's output would pass 2^31 numbers, which not every kernel takes.
    """
    return min(128, _power_of_two((memory / 2 - one) / max(two - one, 1)))


def _power_of_two(most: float) -> int:
    return int(2 ** math.floor(math.log2(max(most, 1))))


def move(values: Tensor, device: str) -> Tensor:
    """The values on the device; a GPU copies them, pinned, while it computes."""
    if device.startswith("cuda") and not values.is_cuda and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


def block(device: str) -> int:
    return _number("CCD_BLOCK", 4096 if device.startswith("cuda") else 256, least=1)


def micro_batch() -> int | None:
    """None for no limit."""
    return _number("CCD_MICRO_BATCH", 0, least=1) if "CCD_MICRO_BATCH" in os.environ else None


def cache_bytes() -> int:
    return _number("CCD_CACHE_GB", 4, least=0) << 30


def _number(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={text}: expected a whole number, at least {least}")
    return int(text)
