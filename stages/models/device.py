"""Where networks compute, and how many views at a time: what of a machine may change last bits.

`runtime/machine.py` has the rest of it, and the variables by which a user chooses.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import torch
from torch import Tensor

from stages.runtime import ranks
from stages.runtime.errors import UserError
from stages.runtime.machine import keep_memory, number

CPU_PIXELS = 2_000_000


def device() -> str:
    """The device of this rank: as CCD_DEVICE says, or else a GPU if there is one."""
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
    if asked == "cpu":
        keep_memory()
    if asked.startswith("cuda:"):
        torch.cuda.set_device(asked)  # what does not name one, as pinned memory, takes this
    return asked


def batch_size(device: str, side: int, forward: Callable[[int], object]) -> int:
    """Images of side x side in one forward pass.

    A processor gains nothing beyond a megapixel or two. On a GPU it is what fits: `forward` makes a
    pass of so many, to see what they take.
    """
    if not device.startswith("cuda") or "CCD_BATCH" in os.environ:
        return number("CCD_BATCH", min(64, _power_of_two(CPU_PIXELS / side**2)), least=1)
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


def block_size(device: str) -> int:
    """Images, or views, in one resumable block: those that can share a pass."""
    return number("CCD_BLOCK", 4096 if device.startswith("cuda") else 256, least=1)


def move(values: Tensor, device: str) -> Tensor:
    """The values on the device; a GPU copies them, pinned, while it computes."""
    if device.startswith("cuda") and not values.is_cuda and not values.is_pinned():
        values = values.pin_memory()
    return values.to(device, non_blocking=True)
