"""What a frozen teacher says of every patch of an image: embeddings in CLIP's space, on a grid.

Of CLIP's ResNets, the values of the attention pool, brought to its output (as DualCoOp and MaskCLIP
have it); of its vision transformers, SCLIP's: in the last block a patch attends to those like it;
of a network of convolutions whose mean is projected, the projection of every cell.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from stages.models.attention import interpolate_positions
from stages.models.teacher import Teacher
from stages.models.towers import ResNetTower, TransformerTower
from stages.runtime.errors import UserError

MOST = 448  # pixels a side, as the sources have for 224


def enlarged(view_size: int) -> int:
    """The side of what a frozen teacher looks at, for a pipeline whose views have that side.

    Twice as large, as 448 is of CLIP's 224, but not beyond that for a teacher that sees more.
    """
    return max(view_size, min(2 * view_size, MOST))


class Patches(nn.Module):
    """Normalised images (n, 3, h, w) to unit embeddings (n, dim, rows, columns), or to features.

    embedded: in the space of the class embeddings; else the tower's own last features. Nothing of
    the teacher is learned, nor part of this module's state.
    """

    def __init__(self, teacher: Teacher, embedded: bool = True) -> None:
        super().__init__()
        self.teacher, self.embedded = teacher, embedded  # a Teacher is no module: it stays apart
        teacher.model.requires_grad_(False)
        if teacher.stride is None:
            raise UserError("this teacher's tower takes squares of one size: its patches are none")
        if getattr(teacher.tower, "attn_pool", None) is not None:
            raise UserError("this teacher's patches are none: its tower pools them by attention")
        maps = self.features(torch.zeros(1, 3, 2 * teacher.stride, 2 * teacher.stride))
        self.width = int(maps.shape[1])
        if embedded:
            self.width = int(self.embed(maps).shape[1])
            if self.width != teacher.dim:
                raise UserError("this teacher's patches are not in the space of its embeddings")

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """A vector a patch."""
        maps = self.features(images)
        return F.normalize(self.embed(maps), dim=1) if self.embedded else maps

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The tower's last features (n, features, rows, columns), before they are pooled."""
        tower: Any = self.teacher.tower
        seen = images.to(self.teacher.device, self.teacher.precision)
        if isinstance(tower, ModifiedResNet):
            maps: Tensor = ResNetTower(tower)(seen)
            return maps.float()
        if isinstance(tower, VisionTransformer):
            look = getattr(self.teacher, "look", None)  # it lays grids of its own over the tower's
            table = look.table if isinstance(look, TransformerTower) else tower.positional_embedding
            return attending_to_alike(tower, seen, table).float()
        maps = tower.trunk.forward_features(seen)
        return maps.float()

    @torch.no_grad()
    def embed(self, maps: Tensor) -> Tensor:
        """The features of every patch, brought to the space of embeddings."""
        tower: Any = self.teacher.tower
        cells = maps.movedim(1, -1).to(self.teacher.precision)
        if isinstance(tower, ModifiedResNet):
            pool = tower.attnpool
            embedded: Tensor = pool.c_proj(pool.v_proj(cells))
        elif isinstance(tower, VisionTransformer):
            embedded = cells @ tower.proj
        else:
            single = cells.flatten(0, 2)[..., None, None]  # each as a map of its own, to be pooled
            embedded = tower.head(tower.trunk.forward_head(single)).unflatten(0, cells.shape[:3])
        return embedded.float().movedim(-1, 1)


def attending_to_alike(tower: VisionTransformer, images: Tensor, table: Tensor) -> Tensor:
    """Features (n, width, rows, columns) of patches, the last block's attention SCLIP's.

    table: the positional embedding, in single precision, of the tower's own grid.
    There each patch attends by softmax(q qᵀ) + softmax(k kᵀ), a head at a time, in place of
    softmax(q kᵀ); what stands around it stays (Wang et al., ECCV 2024).
    """
    patch, width = tower.patch_size, int(tower.conv1.out_channels)
    rows, columns = images.shape[-2] // patch[0], images.shape[-1] // patch[1]
    cells = tower.conv1(images).flatten(2).mT
    first = tower.class_embedding.to(cells).expand(len(cells), 1, -1)
    positions = interpolate_positions(table, rows, columns, "bicubic")
    x = tower.ln_pre(torch.cat([first, cells], dim=1) + positions.to(cells))
    blocks: Any = tower.transformer.resblocks
    for block in blocks[:-1]:
        x = block(x)
    last = blocks[-1]
    x = x + last.ls_1(attention_to_alike(last.attn, last.ln_1(x)))
    said: Tensor = tower.ln_post(x + last.ls_2(last.mlp(last.ln_2(x))))
    return said[:, 1:].mT.reshape(len(said), width, rows, columns)


def attention_to_alike(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(softmax(q qᵀ / √d) + softmax(k kᵀ / √d)) v of each head, of tokens x (n, tokens, width)."""
    assert attention.in_proj_weight is not None
    projected = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    heads = (*x.shape[:2], attention.num_heads, -1)
    q, k, v = (part.reshape(heads).transpose(1, 2) for part in projected.chunk(3, dim=-1))
    scale = q.shape[-1] ** -0.5
    weights = sum((scale * of @ of.mT).softmax(dim=-1) for of in (q, k))
    attended: Tensor = attention.out_proj((weights @ v).transpose(1, 2).flatten(2))
    return attended
