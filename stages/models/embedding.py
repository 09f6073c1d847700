"""The teacher at work on views of images: each image decoded once, views of one size in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.images.crops import (
    DETAIL,
    CropRule,
    Pixels,
    crop,
    crop_size,
    crop_squashed,
    squash,
    stack_views,
)
from stages.images.decode import read_image
from stages.images.prefetch import prefetch
from stages.models.device import move
from stages.models.teacher import Teacher
from stages.runtime import machine
from stages.runtime.types import Arrays, Integers

WAITING = 1 << 30  # bytes of views that wait for others of their shape


class ImageViews(NamedTuple):
    """Views of one image, cut from one decoding of it: of the boxes in it, or of all of it."""

    path: str
    sha256: str
    boxes: list[Pixels]
    whole: bool = False


def embed_views(
    views_of: Callable[[range], list[ImageViews]],
    blocks: list[range],
    teacher: Teacher,
    rule: CropRule,
) -> Iterator[Arrays]:
    """Embeddings (rows, dim) of the views of each of the `blocks`, one block after the other.

    views_of: what is wanted of the images of a block's rows. What is in a batch follows from the
    block alone, not from the number of decoding processes.
    """
    make = partial(crop_views, rule=rule, stride=teacher.stride)
    wanted = (image for block in blocks for image in views_of(block))
    # a worker's tensor holds a file and shared memory, of which there is little: not while it waits
    shared = machine.workers() > 0
    views = (
        one.clone() if shared else one
        for of_image in prefetch(make, wanted, pinned=False)
        for one in of_image
    )
    for block in blocks:
        embedding = torch.empty(len(block), teacher.dim, device=teacher.device)
        for rows, batch in batch_by_shape(zip(block, views, strict=False), teacher.batch):
            places = move(torch.tensor(rows) - block.start, teacher.device)
            embedding[places] = teacher.embed_images(batch)
        yield {"embedding": embedding.cpu().numpy()}


def batch_by_shape(
    views: Iterable[tuple[int, Tensor]], size: int, most: int = WAITING
) -> Iterator[tuple[list[int], Tensor]]:
    """Views, each with its row, in batches of one shape: each when it is full, at last the others.

    Where more than `most` bytes wait, those of the shape that has most of them go as they are.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    held = 0
    for row, one in views:
        shape = tuple(one.shape)
        waiting.setdefault(shape, []).append((row, one))
        held += one.nbytes
        if len(waiting[shape]) < size:
            if held <= most:
                continue
            shape = max(waiting, key=lambda s: sum(w.nbytes for _, w in waiting[s]))
        ready = waiting.pop(shape)
        held -= sum(w.nbytes for _, w in ready)
        yield _stacked(ready)
    for shape in sorted(waiting):
        yield _stacked(waiting[shape])


def _stacked(views: list[tuple[int, Tensor]]) -> tuple[list[int], Tensor]:
    return [row for row, _ in views], stack_views([one for _, one in views])


def crop_views(wanted: ImageViews, rule: CropRule, stride: int | None) -> list[Tensor]:
    """The views wanted of an image, (3, h, w) each: uint8, or float32 if cut from the squashed."""
    sizes = [crop_size(box, rule, stride) for box in wanted.boxes]
    if wanted.whole:
        image = read_image(wanted.path, wanted.sha256, enough=DETAIL * rule.longer)
        return [crop(image, (0, 0, image.width, image.height), sizes[0])]
    image = read_image(wanted.path, wanted.sha256)
    if rule.squashed:
        squashed = squash(image, rule.squashed)
        return [crop_squashed(squashed, *cut) for cut in zip(wanted.boxes, sizes, strict=True)]
    return [crop(image, *cut) for cut in zip(wanted.boxes, sizes, strict=True)]


def whole_image_views(rows: pd.DataFrame, block: range) -> list[ImageViews]:
    """The whole image, of each of the index's `rows` in `block`."""
    part = rows.iloc[block.start : block.stop]
    columns = (part[name] for name in ("path", "sha256", "width", "height"))
    return [
        ImageViews(path, sha256, [(0, 0, width, height)], whole=True)
        for path, sha256, width, height in zip(*columns, strict=True)
    ]


def box_views(
    files: pd.DataFrame, image: Integers, edges: Integers, block: range
) -> list[ImageViews]:
    """The views of each image that has boxes in `block`.

    files: the index. image: the row in it of every box, those of one image beside each other; edges
    (boxes, 4): x0, y0, x1, y1 in pixels.
    """
    rows = image[block.start : block.stop]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    views = []
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        path, sha256 = files[["path", "sha256"]].iloc[rows[start]].tolist()
        own = edges[block.start + start : block.start + stop].tolist()
        views.append(ImageViews(path, sha256, [(x0, y0, x1, y1) for x0, y0, x1, y1 in own]))
    return views
