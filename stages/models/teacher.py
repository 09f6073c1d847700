"""The teacher: a frozen CLIP of open_clip's, for views of any size its tower can take."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import create_model, get_tokenizer
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor

from stages.errors import UserError
from stages.images.augment import normalise
from stages.models.weights import verified

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


class Teacher:
    """CLIP's two encoders, with its own normalisation of the input.

    stride: sides of a view are multiples of it, for a tower that takes any size, otherwise None.
    temperature: of the softmax, as the contrastive training left it.
    """

    def __init__(self, folder: Path, device: str) -> None:
        # open_clip reports every step of the loading through the root logger
        logging.getLogger().setLevel(logging.ERROR)
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
        self.digest = str(verified(folder / WEIGHTS)[1]["sha256"])
        self.device = device
        self.model: Any = create_model(f"local-dir:{folder}", device=device).eval()
        self.tokenizer = get_tokenizer(f"local-dir:{folder}")
        self.mean = tuple(config["preprocess_cfg"]["mean"])
        self.std = tuple(config["preprocess_cfg"]["std"])
        self.temperature = float(1 / self.model.logit_scale.detach().exp())
        self.tower = self.model.visual
        self.stride = 32 if isinstance(self.tower, ModifiedResNet) else None
        self._positions: dict[tuple[int, int], Tensor] = {}

    def check_size(self, size: int, key: str) -> None:
        """Refuse, in the name of the parameter `key`, a view size the tower cannot take."""
        native = self.tower.image_size
        native = native if isinstance(native, int) else native[0]
        if self.stride is None and size != native:
            raise UserError(
                f"`{key}` is {size}, but this teacher's tower takes views of {native} only"
            )
        if self.stride is not None and (size % self.stride or size < self.stride):
            raise UserError(
                f"`{key}` is {size}; it must be a multiple of the tower's stride, {self.stride}"
            )

    @torch.inference_mode()
    def embed_images(self, views: Tensor) -> Tensor:
        """Unit embeddings (n, dim) float32 of uint8 views (n, 3, h, w)."""
        images = normalise(views.to(self.device), self.mean, self.std)
        if not isinstance(self.tower, ModifiedResNet):
            return F.normalize(self.tower(images), dim=-1).float().cpu()
        x = self.tower.stem(images)
        for layer in (self.tower.layer1, self.tower.layer2, self.tower.layer3, self.tower.layer4):
            x = layer(x)
        height, width = x.shape[-2:]
        if (height, width) not in self._positions:
            table = self.tower.attnpool.positional_embedding
            self._positions[height, width] = interpolate_positions(table, height, width)
        pooled = attention_pool(self.tower.attnpool, x, self._positions[height, width])
        return F.normalize(pooled, dim=-1).float().cpu()

    @torch.inference_mode()
    def embed_class(self, prompts: list[str]) -> Tensor:
        """The unit mean (dim,) of the prompts' unit text embeddings."""
        tokens = self.tokenizer(prompts).to(self.device)
        texts = self.model.encode_text(tokens, normalize=True).float()
        return F.normalize(texts.mean(dim=0), dim=0).cpu()

    def too_long(self, prompt: str) -> bool:
        """Whether the text encoder would cut the prompt off."""
        context = int(self.tokenizer.context_length)
        longer = self.tokenizer([prompt], context_length=context + 64)
        return int((longer != 0).sum()) > context


def interpolate_positions(table: Tensor, height: int, width: int) -> Tensor:
    """The positional embedding of an attention pool, for a grid of another size.

    table: (side * side + 1, dim), the mean token's first. That one is kept, the others are
    interpolated bilinearly as a picture, as the paper's code does. Returns (height * width + 1,
    dim).
    """
    side = round((len(table) - 1) ** 0.5)
    grid = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (height, width) != (side, side):
        grid = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
    return torch.cat([table[:1], grid.flatten(2)[0].T])


def attention_pool(pool: AttentionPool2d, features: Tensor, positions: Tensor) -> Tensor:
    """open_clip's attention pooling of `features` (n, dim, h, w), with the positions given.

    Only the mean token asks, since only its answer is used. Returns (n, output dim).
    """
    tokens = features.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens])
    tokens = tokens + positions[:, None].to(tokens.dtype)
    pooled, _ = F.multi_head_attention_forward(
        query=tokens[:1],
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pool.num_heads,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        training=False,
        need_weights=False,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    return pooled[0]
