"""What a step of the training sees: shuffled batches, and the views of their images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.images.crops import read_squashed, stack_views
from stages.images.prefetch import load_global_views, prefetch, split_batches
from stages.runtime import machine, ranks
from stages.runtime.progress import meter
from stages.training.augment import strong, weak
from stages.training.distributed import share


class Augmentation(NamedTuple):
    """size: side of a view; jitter: of the strong views, none of which is made without it."""

    size: int
    jitter: tuple[float, ...] | None


class Batch(NamedTuple):
    """Rows of the images, and a seed, from which their augmentation follows.

    last: of the epoch's passes over the images, whose predictions count.
    """

    rows: list[int]
    seed: int
    last: bool = True


class TrainingImages:
    """The training images, decoded once if there is memory for it.

    files: `path` and `sha256` of the index, a row an image.
    """

    def __init__(self, files: pd.DataFrame, augmentation: Augmentation) -> None:
        self.files, self.augmentation = files[["path", "sha256"]], augmentation
        self.decoded = decode_once(self.files, augmentation.size)

    def views(
        self, batches: list[Batch], place: ranks.Place
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The weak and strong views of this rank's share of each batch."""
        own = [b._replace(rows=share(b.rows, place.rank, place.ranks)[0]) for b in batches]
        make = partial(training_views, self.files, self.augmentation, self.decoded)
        return prefetch(make, own)


def shuffled_batches(images: int, size: int, seed: int, steps: int = 0) -> list[Batch]:
    """The batches of an epoch: rows in random order, as often as makes at least so many `steps`."""
    passes = max(1, math.ceil(steps / math.ceil(images / size)))
    batches = []
    for number in range(passes):
        own = mix_seeds(seed, number) if number else seed
        order = torch.randperm(images, generator=torch.Generator().manual_seed(own)).tolist()
        last = number == passes - 1
        batches += [Batch(list(rows), own, last) for rows in split_batches(order, size)]
    return batches


def training_views(
    files: pd.DataFrame, augmentation: Augmentation, decoded: Tensor | None, batch: Batch
) -> tuple[Tensor, Tensor | None]:
    """The weak and the strong views (n, 3, size, size) uint8 of a batch.

    What is random for an image follows from the epoch's seed and its row: not from the batch, nor
    from the process that makes the view.
    """
    weak_views, strong_views = [], []
    for row in batch.rows:
        if decoded is None:
            path, sha256 = files.iloc[row]
            image = read_squashed(path, sha256, augmentation.size)[None]
        else:
            image = decoded[row][None]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seeds(batch.seed, row))
            weak_views.append(weak(image)[0])
            if augmentation.jitter is not None:
                strong_views.append(strong(image, augmentation.jitter)[0])
    return stack_views(weak_views), stack_views(strong_views) if strong_views else None


def decode_once(files: pd.DataFrame, size: int) -> Tensor | None:
    """All images (n, 3, size, size) uint8, if the machine's memory for that is enough."""
    if len(files) * 3 * size**2 * ranks.place().beside > machine.cache_bytes():
        return None
    decoded = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    done = 0
    with meter("decode", "images", len(files)) as progress:
        for views in load_global_views(files, size, split_batches(range(len(files)), 64)):
            decoded[done : done + len(views)] = views
            done += len(views)
            progress.advance(len(views))
    return decoded


def mix_seeds(*numbers: int) -> int:
    """A seed that follows from several numbers, and from each of them differently."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
