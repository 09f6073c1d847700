"""ADDS' decoder (Xu et al. 2022): class names look at image tokens, and these back at them.

There is no official code; this is of descriptions, smaller, and learns pseudo-labels. The frozen
teacher sees a pyramid: the image at its own size, and the windows that tile it at twice that.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.patches import Patches

LAYERS, HEADS, FEED = 2, 8, 1024  # of an unofficial implementation: 6, 32, 3072
DROPOUT = 0.1
TILES = 2  # a side of the pyramid's lower level


class Pyramid(nn.Module):
    """Images (n, 3, 2 s, 2 s) to the patches of all levels, as a map of one row."""

    def __init__(self, patches: Patches) -> None:
        super().__init__()
        self.patches = patches

    def forward(self, images: Tensor) -> Tensor:
        """(n, dim, 1, patches): of the small whole first, then of the windows, row by row."""
        small = F.interpolate(images, scale_factor=1 / TILES, mode="bicubic", antialias=True)
        levels = [small, *windows(images)]
        return torch.cat([self.patches(level).flatten(2) for level in levels], dim=2)[:, :, None]


def windows(images: Tensor) -> list[Tensor]:
    """The TILES x TILES windows that tile images (n, 3, h, w), row by row."""
    return [
        window
        for row in images.chunk(TILES, dim=2)
        for window in row.contiguous().chunk(TILES, dim=3)
    ]


class Layer(nn.Module):
    """The names look at the image, then the image at the names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        heads = math.gcd(HEADS, width)
        self.look = nn.MultiheadAttention(width, heads, dropout=DROPOUT, batch_first=True)
        self.back = nn.MultiheadAttention(width, heads, dropout=DROPOUT, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(width, FEED), nn.ReLU(), nn.Linear(FEED, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, names: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """names (n, classes, width) and image (n, tokens, width), both changed."""
        asking = self.norms[0](names + self.dropout(names))
        found, _ = self.look(asking, image, image, need_weights=False)
        found = self.norms[1](found + asking)
        names = self.norms[2](self.feed(found) + found)
        seen, _ = self.back(image, names, names, need_weights=False)
        return names, self.norms[3](image + seen)


class Decoder(nn.Module):
    """Patches (n, dim, rows, columns) to logits (n, classes); texts (classes, dim) ask."""

    texts: Tensor

    def __init__(self, texts: Tensor) -> None:
        super().__init__()
        self.register_buffer("texts", texts.float())
        width = texts.shape[1]
        self.layers = nn.ModuleList(Layer(width) for _ in range(LAYERS))
        self.logit = nn.Linear(width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """The line that all classes share, of what their names have found."""
        image = maps.flatten(2).mT
        names = self.texts.expand(len(image), -1, -1)
        for layer in self.layers:
            names, image = layer(names, image)
        logits: Tensor = self.logit(names)[..., 0]
        return logits
