"""Items made from photographs, ahead of their use, in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stages.images.crops import read_squashed, stack_views
from stages.runtime import machine
from stages.runtime.errors import UserError

Key = TypeVar("Key")
Item = TypeVar("Item")

AHEAD = 4  # items that each worker may be ahead: memory stays bounded


class _Made(Dataset[Item | str], Generic[Key, Item]):
    """What `make` makes of each key; the reason instead where it raises `UserError`.

    An exception would reach the user as the traceback of a worker.
    """

    def __init__(self, make: Callable[[Key], Item]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Item | str:
        try:
            return self.make(key)
        except UserError as error:
            return str(error)


def prefetch(
    make: Callable[[Key], Item], keys: Iterable[Key], pinned: bool = True
) -> Iterator[Item]:
    """`make(key)` of each of the `keys`, in their order, whatever the number of workers.

    pinned: for a GPU, in memory that it can copy from while it computes; for items that go there as
    they are. Where processes are not forked, `make` must be picklable: a function, or a partial.
    """
    workers = machine.workers()
    loader = DataLoader(
        _Made(make),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        generator=torch.Generator(),  # or the loader would draw from the one of the training
        prefetch_factor=AHEAD if workers else None,
        pin_memory=pinned and machine.may_use_gpu(),
        worker_init_fn=_begin_worker if workers else None,
    )
    for item in loader:
        if isinstance(item, str):
            raise UserError(item)
        yield item


def load_global_views(
    rows: pd.DataFrame, size: int, batches: Iterable[Sequence[int]]
) -> Iterator[Tensor]:
    """Batches (n, 3, size, size) uint8 of whole images, squashed; each of some of the `rows`."""
    return prefetch(partial(_read_batch, rows[["path", "sha256"]], size), batches)


def split_batches(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """The rows in batches of `size`; the last may have less."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _read_batch(files: pd.DataFrame, size: int, batch: Sequence[int]) -> Tensor:
    wanted = files.iloc[list(batch)].itertuples(index=False)
    return stack_views([read_squashed(path, sha256, size) for path, sha256 in wanted])


def _begin_worker(worker: int) -> None:
    """Leave signals to the parent, and give the memory of large images back, which it keeps."""
    machine.keep_memory(keep=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
