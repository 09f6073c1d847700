"""From the pixels of a view to the numbers that a network was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (n, 3, h, w) of 0 … 255, of given mean and deviation a channel, channels last."""
    shape = (1, 3, 1, 1)
    scaled = images.contiguous(memory_format=torch.channels_last).float() / 255
    return scaled.sub_(scaled.new_tensor(mean).view(shape)).div_(scaled.new_tensor(std).view(shape))
