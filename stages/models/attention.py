"""What CLIP's towers do with a grid of another size: positions interpolated, attention pooled."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d
from torch import Tensor


def interpolate_positions(
    table: Tensor, height: int, width: int, mode: Literal["bilinear", "bicubic"]
) -> Tensor:
    """A tower's positional embedding, for a grid of another size.

    table: (side * side + 1, dim), the mean or class token's first. That one is kept, the others are
    interpolated as a picture: bilinearly for an attention pool, as the paper's code does, or
    bicubically with antialiasing, as open_clip does for a transformer. Returns
    (height * width + 1, dim).
    """
    side = round((len(table) - 1) ** 0.5)
    if (height, width) == (side, side):
        return table
    grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(
        grid, size=(height, width), mode=mode, align_corners=False, antialias=mode == "bicubic"
    )
    return torch.cat([table[:1], grid.flatten(2)[0].T])


def attention_pool(pool: AttentionPool2d, features: Tensor, positions: Tensor) -> Tensor:
    """open_clip's attention pooling of `features` (n, dim, h, w), with the positions given.

    Only the mean token asks, since only its answer is used. So its question is brought to the
    tokens' space, and the attended tokens, not all of them, to that of the values: the same sums in
    another order, dim / heads times fewer. Computes in the pool's precision. Returns (n, output).
    """
    weight = pool.q_proj.weight
    tokens = features.to(weight.dtype).flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + positions
    heads, dim = pool.num_heads, tokens.shape[-1]
    question = pool.q_proj(tokens[:, 0]).view(-1, heads, dim // heads)
    key = pool.k_proj.weight.view(heads, dim // heads, dim)
    value = pool.v_proj.weight.view(heads, dim // heads, dim)
    sought = torch.einsum("nhe,hed->nhd", question, key) * (dim // heads) ** -0.5
    attention = torch.einsum("nhd,ntd->nht", sought, tokens).softmax(dim=-1)
    attended = torch.einsum("nht,ntd->nhd", attention, tokens)
    answer = torch.einsum("nhd,hed->nhe", attended, value).flatten(1) + pool.v_proj.bias
    pooled: Tensor = pool.c_proj(answer)
    return pooled
