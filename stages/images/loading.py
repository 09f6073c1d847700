"""Photographs of the index as batches of global views, decoded ahead in worker processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from stages import machine
from stages.errors import UserError
from stages.images.decode import read_image
from stages.images.views import global_view
from stages.progress import meter


class Photographs(Dataset[Tensor | str]):
    """Global views of the rows of an index, (3, size, size) uint8.

    An item that cannot be read is the reason instead: an exception would reach the user as the
    traceback of a worker.
    """

    def __init__(self, rows: pd.DataFrame, size: int) -> None:
        self.files = list(zip(rows["path"], rows["sha256"], strict=True))
        self.size = size
        self.decoded: Tensor | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> Tensor | str:
        try:
            return global_view(read_image(*self.files[item]), self.size)
        except UserError as error:
            return str(error)

    def keep_decoded(self) -> None:
        """Decode everything once and keep it, if the machine's memory for that is enough."""
        if len(self) * 3 * self.size**2 > machine.cache_bytes():
            return
        decoded = torch.empty(len(self), 3, self.size, self.size, dtype=torch.uint8)
        done = 0
        with meter("decode", "images", len(self)) as progress:
            for views in batches(self, range(len(self)), 64):
                decoded[done : done + len(views)] = views
                done += len(views)
                progress.advance(len(views))
        self.decoded = decoded


def batches(photographs: Photographs, order: Sequence[int], size: int) -> Iterator[Tensor]:
    """The photographs in `order`, in batches (size, 3, side, side) uint8; the last may be less."""
    if photographs.decoded is not None:
        for start in range(0, len(order), size):
            yield photographs.decoded[torch.as_tensor(order[start : start + size])]
        return
    workers = machine.workers()
    loader = DataLoader(
        Subset(photographs, list(order)),
        batch_size=size,
        num_workers=workers,
        collate_fn=list,
        generator=torch.Generator(),  # or the loader would draw from the one of the augmentation
        worker_init_fn=_leave_signals_to_the_parent if workers else None,
    )
    for items in loader:
        for item in items:
            if isinstance(item, str):
                raise UserError(item)
        yield torch.stack(items)


def _leave_signals_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
