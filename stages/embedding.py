"""The teacher at work on parts of images: each image decoded once, views of one size in batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages import machine
from stages.images.decode import read_image
from stages.images.views import Pixels, global_view, part_of_squashed, view, view_size
from stages.method.types import Floats
from stages.models.teacher import Teacher
from stages.params import LocalClip


def embed_parts(
    boxes: pd.DataFrame, files: pd.DataFrame, teacher: Teacher, how: LocalClip, side: int = 0
) -> Floats:
    """Embeddings (views, dim) of the parts of images in `boxes`; an image's stand together.

    boxes: `image_id`, and x0, y0, x1, y1 in pixels of the original. If `how.source` is resized,
    views are cut from the image squashed to a square of `side`, by its pixels u0, v0, u1, v1.
    files: `path` and `sha256` by image id.
    """
    columns = ["u0", "v0", "u1", "v1"] if how.source == "resized" else ["x0", "y0", "x1", "y1"]
    sized: dict[tuple[int, int], list[tuple[int, Tensor]]] = {}
    position = 0
    for image_id, own in boxes.groupby("image_id", sort=False):
        image = read_image(*files.loc[image_id, ["path", "sha256"]])
        squashed = global_view(image, side) if how.source == "resized" else None
        for x0, y0, x1, y1 in own[columns].to_numpy().tolist():
            box: Pixels = (x0, y0, x1, y1)
            size = view_size(box, how.view_size, how.aspect, how.rounding, teacher.stride)
            cut = (
                view(image, box, size)
                if squashed is None
                else part_of_squashed(squashed, box, size)
            )
            sized.setdefault(size, []).append((position, cut))
            position += 1
    embedding = None
    for _, views in sorted(sized.items()):
        for start in range(0, len(views), machine.batch()):
            batch = views[start : start + machine.batch()]
            values = teacher.embed_images(torch.stack([pixels for _, pixels in batch])).numpy()
            if embedding is None:
                embedding = np.empty((len(boxes), values.shape[1]), np.float32)
            embedding[[row for row, _ in batch]] = values
    assert embedding is not None
    return embedding
