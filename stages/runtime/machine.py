"""The machine's shape: what may differ between a laptop and a cluster.

It is no part of a result. Device, batch and block may change its last bits, so what they are by
default is decided in `models/device.py`; the others change nothing.

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

import ctypes
import os
import sys

from stages.runtime import ranks
from stages.runtime.errors import UserError

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h

# views have many sizes, each of which oneDNN prepares every layer for: keep what it made
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")


def workers() -> int:
    """Processes that decode images."""
    return number("CCD_WORKERS", min(8, max(0, ranks.own_cores() - 2)), least=0)


def may_use_gpu() -> bool:
    """Whether there is a GPU that the user did not turn away."""
    import torch

    return os.environ.get("CCD_DEVICE", "cuda").startswith("cuda") and torch.cuda.is_available()


def is_without_gpu() -> bool:
    """Whether networks will run on the processor, as far as can be seen without torch."""
    asked = os.environ.get("CCD_DEVICE")
    # NVIDIA's, AMD's, and that of a Windows beneath
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return asked == "cpu" or (asked is None and not any(map(os.path.exists, drivers)))


def keep_memory(keep: bool = True) -> None:
    """Let the C library keep what a network's pass frees for the next pass, where it can be told.

    Otherwise it goes back to the kernel, which has to clear every page of it again: up to three
    quarters of a convolutional network's time on a CPU (docs/performance.md). keep: False for a
    process that shall give it back, as it is by default.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            least = 1 << 30 if keep else 128 << 10
            mallopt(MMAP_THRESHOLD, least) or mallopt(MMAP_THRESHOLD, 32 << 20)  # an older one
            mallopt(TRIM_THRESHOLD, (1 << 31) - 1 if keep else 128 << 10)


def micro_batch() -> int | None:
    """Images in one pass of training; None for no limit."""
    return number("CCD_MICRO_BATCH", 0, least=1) if "CCD_MICRO_BATCH" in os.environ else None


def cache_bytes() -> int:
    """Memory for decoded images."""
    return number("CCD_CACHE_GB", 4, least=0) << 30


def number(name: str, default: int, least: int) -> int:
    """The whole number in an environment variable, or else the default."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={text}: expected a whole number, at least {least}")
    return int(text)
