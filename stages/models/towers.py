"""A teacher's image towers as they are asked here: normalised images in, one tensor out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stages.models.attention import interpolate_positions


class ResNetTower(nn.Module):
    """CLIP's ModifiedResNet up to its last feature map."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        """The features (n, features, rows, columns) of images (n, 3, h, w)."""
        x: Tensor = self.tower.stem(images)
        for layer in (self.tower.layer1, self.tower.layer2, self.tower.layer3, self.tower.layer4):
            x = layer(x)
        return x


class TransformerTower(nn.Module):
    """open_clip's vision transformer, its positional embedding resized as open_clip does."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower = tower
        self.patch = tower.patch_size
        self.table = tower.positional_embedding.detach().clone()
        self.resized: dict[tuple[int, int], nn.Parameter] = {}

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (n, dim) of images (n, 3, h, w), of whole patches."""
        height, width = images.shape[-2:]
        grid = (int(height) // self.patch[0], int(width) // self.patch[1])
        if grid not in self.resized:
            with torch.inference_mode(mode=False), torch.no_grad():
                table = interpolate_positions(self.table, *grid, "bicubic").to(images.dtype)
            self.resized[grid] = nn.Parameter(table, requires_grad=False)
        self.tower.positional_embedding = self.resized[grid]
        said: Any = self.tower(images)
        embeddings: Tensor = said[0] if isinstance(said, tuple) else said  # CoCa's tokens too
        return embeddings


@torch.inference_mode()
def stride_of(tower: Any, device: str) -> int | None:
    """Pixels a cell of the grid of a timm tower that takes images of any shape, as convolutions do.

    None for one that takes squares of one size: it has positions, or windows, of its own.
    """
    trunk = getattr(tower, "trunk", None)
    features = getattr(trunk, "feature_info", None)
    if not features or getattr(trunk, "pos_embed", None) is not None:
        return None
    stride = int(features[-1]["reduction"])
    if stride & (stride - 1):  # of no pyramid of convolutions
        return None
    try:
        tower(torch.zeros(1, 3, 2 * stride, 3 * stride, device=device))
    except (AssertionError, RuntimeError, ValueError):  # timm's and torch's words for a wrong shape
        return None
    return stride
