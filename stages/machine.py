"""The machine's shape: what may differ between a laptop and a cluster.

It is no part of a result: device and batch change at most its last bits, the others nothing.

Read from the environment, never from `params.yaml`, so that `dvc.lock` is the same everywhere:

    CCD_DEVICE    cpu, cuda, cuda:1, mps            (a GPU if there is one)
    CCD_WORKERS   processes that decode images      (cores beyond the first two, at most 8)
    CCD_BATCH     images in one forward pass        (64)
    CCD_BLOCK     images in one resumable block     (256)
    CCD_CACHE_GB  memory for decoded images         (4)
"""

from __future__ import annotations

import os

from stages.errors import UserError


def device() -> str:
    import torch

    asked = os.environ.get("CCD_DEVICE")
    if asked is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=asked)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"CCD_DEVICE={asked}: {' '.join(str(error).split())[:200]}") from None
    return asked


def workers() -> int:
    return _number("CCD_WORKERS", min(8, max(0, (os.cpu_count() or 1) - 2)), least=0)


def batch() -> int:
    return _number("CCD_BATCH", 64, least=1)


def block() -> int:
    return _number("CCD_BLOCK", 256, least=1)


def cache_bytes() -> int:
    return _number("CCD_CACHE_GB", 4, least=0) << 30


def _number(name: str, default: int, least: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={text}: expected a whole number, at least {least}")
    return int(text)
