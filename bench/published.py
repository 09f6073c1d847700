"""What the pipeline is faster than: one crop at a time, as the published script looks at them.

Restated from a description of what the script does; none of its code is here. Channels first, in
half precision on a GPU and in single precision on a CPU, as the script has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

Crop = tuple[int, int, int, int]


@torch.inference_mode()
def look_at_crops(tower: Any, photos: list[tuple[Path, list[Crop]]], side: int, device: str) -> int:
    """Embed each crop of each image, squashed to `side` before, by itself; returns their pixels."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    table_type = tower.attnpool.positional_embedding.dtype
    pixels = 0
    for path, crops in photos:
        with Image.open(path) as file:
            resized = file.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
        squashed = (torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255 - mean) / std
        for x0, y0, x1, y1 in crops:
            longer = max(x1 - x0, y1 - y0)
            # below the tower's stride the script crashes
            height, width = (max(32, n * side // longer) for n in (y1 - y0, x1 - x0))
            crop = squashed[None, :, y0:y1, x0:x1]
            view = F.interpolate(crop, (height, width), mode="bilinear", align_corners=False)
            embed(tower, view.to(device, table_type)).cpu()
            pixels += height * width
    return pixels


def embed(tower: Any, view: Tensor) -> Tensor:
    """The embedding of one view of any size, the positions interpolated for it anew."""
    x = tower.stem(view)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        x = layer(x)
    pool = tower.attnpool
    table = pool.positional_embedding
    side = round((len(table) - 1) ** 0.5)
    grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, x.shape[-2:], mode="bilinear", align_corners=False)
    positions = torch.cat([table[:1], grid.flatten(2)[0].T])
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + positions[:, None]
    attended, _ = F.multi_head_attention_forward(
        tokens, tokens, tokens, tokens.shape[-1], pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight, out_proj_bias=pool.c_proj.bias,
        training=False, need_weights=False, use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )  # fmt: skip
    return F.normalize(attended[0], dim=-1)
