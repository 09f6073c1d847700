"""Section 3.4: weak and strong views of the same images, for training."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter


def weak(images: Tensor) -> Tensor:
    """Each image of (n, 3, h, w) mirrored with probability one half; draws from torch's RNG."""
    mirrored = torch.rand(len(images)) < 0.5
    return torch.where(mirrored[:, None, None, None].to(images.device), images.flip(-1), images)


def strong(images: Tensor, jitter: tuple[float, ...]) -> Tensor:
    """A weak view of uint8 `images` with the colours of each jittered on its own.

    jitter: strengths of brightness, contrast, saturation and hue, as in torchvision.
    """
    brightness, contrast, saturation, hue = jitter
    change = ColorJitter(brightness, contrast, saturation, hue)
    return torch.stack([change(image) for image in weak(images)])


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images (n, 3, h, w) of 0 … 255, of given mean and deviation a channel, channels last."""
    shape = (1, 3, 1, 1)
    scaled = images.contiguous(memory_format=torch.channels_last).float() / 255
    return scaled.sub_(scaled.new_tensor(mean).view(shape)).div_(scaled.new_tensor(std).view(shape))
