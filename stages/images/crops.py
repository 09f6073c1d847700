"""From an image to the views that a network sees: uint8 tensors of a given size."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from stages.images.decode import read_image

Pixels = tuple[int, int, int, int]

DETAIL = 2  # times the side of a global view that its file is decoded at, at least


class CropRule(NamedTuple):
    """How views of parts of an image are cut.

    longer: their longer side. squashed: the side of the square to which the image is squashed
    before, or 0 to cut from its own pixels.
    """

    longer: int
    aspect: Literal["keep", "square"] = "keep"
    rounding: Literal["stride", "pixel"] = "stride"
    squashed: int = 0


def read_squashed(path: str, sha256: str, size: int) -> Tensor:
    """The whole image squashed to a square, from its file: (3, size, size) uint8."""
    return squash(read_image(path, sha256, enough=DETAIL * size), size)


def squash(image: Image.Image, size: int) -> Tensor:
    """The whole image squashed to a square: (3, size, size) uint8."""
    return crop(image, (0, 0, image.width, image.height), (size, size))


def crop(image: Image.Image, box: Pixels, size: tuple[int, int]) -> Tensor:
    """The part of the image in `box` (x0, y0, x1, y1), at `size` (width, height): (3, h, w)."""
    resized = image.crop(box).resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def stack_views(views: list[Tensor]) -> Tensor:
    """Views (3, h, w) of one size as a batch (n, 3, h, w), channels last as they were decoded."""
    return torch.stack([one.permute(1, 2, 0) for one in views]).permute(0, 3, 1, 2)


def crop_squashed(squashed: Tensor, box: Pixels, size: tuple[int, int]) -> Tensor:
    """The part in `box` of an image squashed to (3, side, side), at `size`: (3, h, w) float32.

    Enlarged as the published script does, bilinearly and without antialiasing.
    """
    x0, y0, x1, y1 = box
    part = squashed[None, :, y0:y1, x0:x1].float()
    return F.interpolate(part, size=size[::-1], mode="bilinear", align_corners=False)[0]


def crop_size(box: Pixels, rule: CropRule, stride: int | None) -> tuple[int, int]:
    """The size (width, height) of the view of `box`, for a tower of that stride.

    With its aspect kept, both sides are rounded to the tower's stride, so that no pixel falls off
    the last cell and views of one size can share a batch: at 640 and stride 32 that is at most
    2.5 % of the longer side, at the demo's 96, up to 17 %. Or they are cut to whole pixels, as in
    the published script, but not below the stride; it computes in single precision, by which a side
    comes out a pixel less here and there, the longer one of a box in nine too.
    """
    if rule.aspect == "square" or stride is None:
        return rule.longer, rule.longer
    width, height = box[2] - box[0], box[3] - box[1]
    if rule.rounding == "pixel":
        scale = np.float32(1) / np.float32(max(width, height)) * np.float32(rule.longer)
        sides = [int(np.float32(side) * scale) for side in (width, height)]
    else:
        exact = [side * rule.longer / max(width, height) for side in (width, height)]
        sides = [round(side / stride) * stride for side in exact]
    return max(stride, sides[0]), max(stride, sides[1])
