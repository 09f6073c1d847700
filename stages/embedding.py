"""The teacher at work on parts of images: each image decoded once, views of one size in batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages import machine
from stages.images.decode import read_image
from stages.images.views import Cutting, Pixels, global_view, part_of_squashed, view, view_size
from stages.method.types import Floats
from stages.models.teacher import Teacher


def embed_parts(
    boxes: pd.DataFrame, files: pd.DataFrame, teacher: Teacher, cutting: Cutting
) -> Floats:
    """Embeddings (views, dim) of the parts of images in `boxes`; an image's stand together.

    boxes: `image_id`, and x0, y0, x1, y1 in pixels of the original; if views are cut from the
    squashed image, u0, v0, u1, v1 in pixels of that. files: `path` and `sha256` by image id.
    """
    embedding = np.empty((len(boxes), teacher.dim), np.float32)
    waiting: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}

    def embed(size: tuple[int, int]) -> None:
        rows, views = zip(*waiting.pop(size), strict=True)
        embedding[list(rows)] = teacher.embed_images(torch.stack(views)).numpy()

    position = 0
    columns = ["u0", "v0", "u1", "v1"] if cutting.squashed else ["x0", "y0", "x1", "y1"]
    for image_id, own in boxes.groupby("image_id", sort=False):
        image = read_image(*files.loc[image_id, ["path", "sha256"]])
        squashed = global_view(image, cutting.squashed) if cutting.squashed else None
        for x0, y0, x1, y1 in own[columns].to_numpy().tolist():
            box: Pixels = (x0, y0, x1, y1)
            size = view_size(box, cutting, teacher.stride)
            cut = (
                view(image, box, size)
                if squashed is None
                else part_of_squashed(squashed, box, size)
            )
            waiting.setdefault(size, []).append((position, cut))
            if len(waiting[size]) == machine.batch():
                embed(size)
            position += 1
    for size in sorted(waiting):
        embed(size)
    return embedding
