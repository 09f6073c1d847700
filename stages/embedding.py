"""The teacher at work on views of images: each image decoded once, views of one size in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages import machine
from stages.images.decode import read_image
from stages.images.loading import made_ahead
from stages.images.views import (
    DETAIL,
    Cutting,
    Pixels,
    global_view,
    part_of_squashed,
    stack,
    view,
    view_size,
)
from stages.method.types import Integers
from stages.models.teacher import Teacher
from stages.resume import Arrays

WAITING = 1 << 30  # bytes of views that wait for others of their shape


class Look(NamedTuple):
    """Views of one image, cut from one decoding of it: of the boxes in it, or of all of it."""

    path: str
    sha256: str
    boxes: list[Pixels]
    whole: bool = False


def embed_looks(
    looks_of: Callable[[range], list[Look]],
    blocks: list[range],
    teacher: Teacher,
    cutting: Cutting,
) -> Iterator[Arrays]:
    """Embeddings (rows, dim) of the views of each of the `blocks`, one block after the other.

    looks_of: the looks of a block's rows. What is in a batch follows from the block alone, not from
    the number of decoding processes.
    """
    cut = partial(cut_views, cutting=cutting, stride=teacher.stride)
    cuts = made_ahead(cut, (look for block in blocks for look in looks_of(block)), pinned=False)
    # a worker's tensor holds a file and shared memory, of which there is little: not while it waits
    shared = machine.workers() > 0
    views = (one.clone() if shared else one for cut in cuts for one in cut)
    for block in blocks:
        embedding = torch.empty(len(block), teacher.dim, device=teacher.device)
        for rows, batch in in_batches(zip(block, views, strict=False), teacher.batch):
            places = machine.move(torch.tensor(rows) - block.start, teacher.device)
            embedding[places] = teacher.embed_images(batch)
        yield {"embedding": embedding.cpu().numpy()}


def in_batches(
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
    return [row for row, _ in views], stack([one for _, one in views])


def cut_views(look: Look, cutting: Cutting, stride: int | None) -> list[Tensor]:
    """The views of a look, (3, h, w) each: uint8, or float32 if cut from the squashed image."""
    sizes = [view_size(box, cutting, stride) for box in look.boxes]
    if look.whole:
        image = read_image(look.path, look.sha256, enough=DETAIL * cutting.longer)
        return [view(image, (0, 0, image.width, image.height), sizes[0])]
    image = read_image(look.path, look.sha256)
    if cutting.squashed:
        squashed = global_view(image, cutting.squashed)
        return [part_of_squashed(squashed, *cut) for cut in zip(look.boxes, sizes, strict=True)]
    return [view(image, *cut) for cut in zip(look.boxes, sizes, strict=True)]


def whole_images(rows: pd.DataFrame, block: range) -> list[Look]:
    """A look at each image of the index's `rows` in `block`, as a whole."""
    part = rows.iloc[block.start : block.stop]
    columns = (part[name] for name in ("path", "sha256", "width", "height"))
    return [
        Look(path, sha256, [(0, 0, width, height)], whole=True)
        for path, sha256, width, height in zip(*columns, strict=True)
    ]


def parts_of_images(
    files: pd.DataFrame, image: Integers, edges: Integers, block: range
) -> list[Look]:
    """A look at each image that has boxes in `block`.

    files: the index. image: the row in it of every box, those of one image beside each other; edges
    (boxes, 4): x0, y0, x1, y1 in pixels.
    """
    rows = image[block.start : block.stop]
    starts = np.flatnonzero(np.diff(rows, prepend=-1))
    looks = []
    for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
        path, sha256 = files[["path", "sha256"]].iloc[rows[start]].tolist()
        own = edges[block.start + start : block.start + stop].tolist()
        looks.append(Look(path, sha256, [(x0, y0, x1, y1) for x0, y0, x1, y1 in own]))
    return looks
