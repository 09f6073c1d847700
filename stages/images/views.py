"""From an image to the views that a network sees: uint8 tensors of a given size."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Pixels = tuple[int, int, int, int]


def global_view(image: Image.Image, size: int) -> Tensor:
    """The whole image squashed to a square: (3, size, size) uint8."""
    return view(image, (0, 0, image.width, image.height), (size, size))


def view(image: Image.Image, box: Pixels, size: tuple[int, int]) -> Tensor:
    """The part of the image in `box` (x0, y0, x1, y1), at `size` (width, height): (3, h, w)."""
    resized = image.crop(box).resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def local_view_size(box: Pixels, longer: int, stride: int) -> tuple[int, int]:
    """The size (width, height) of a local view: longer side given, aspect kept but for rounding.

    Both sides are rounded to the tower's stride, so that no pixel falls off the last cell, and
    views of one size can share a batch. At 640 and stride 32 that is at most 2.5 % of the longer
    side; at the demo's 96, up to 17 %.
    """
    width, height = box[2] - box[0], box[3] - box[1]
    scale = longer / max(width, height)

    def rounded(side: int) -> int:
        return max(stride, round(side * scale / stride) * stride)

    return rounded(width), rounded(height)
