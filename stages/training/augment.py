"""Section 3.4: weak and strong views of the same images, for training."""

from __future__ import annotations

import torch
from torch import Tensor


def weak(images: Tensor) -> Tensor:
    """Each image of (n, 3, h, w) mirrored with probability one half; draws from torch's RNG."""
    mirrored = torch.rand(len(images)) < 0.5
    return torch.where(mirrored[:, None, None, None].to(images.device), images.flip(-1), images)


def strong(images: Tensor, jitter: tuple[float, ...]) -> Tensor:
    """A weak view of uint8 `images` with the colours of each jittered on its own.

    jitter: strengths of brightness, contrast, saturation and hue, as in torchvision.
    """
    from torchvision.transforms.v2 import ColorJitter

    brightness, contrast, saturation, hue = jitter
    change = ColorJitter(brightness, contrast, saturation, hue)
    return torch.stack([change(image) for image in weak(images)])
