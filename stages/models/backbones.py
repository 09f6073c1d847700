"""The student's backbones: what of a published architecture gives a feature map.

timm and torchvision take seconds to import: who only reads a configuration does without.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from stages.models.weights import Note
from stages.runtime.errors import UserError, ours, reason


class Tower(BaseModel):
    """What a ModifiedResNet is built of, and the rest of a teacher's configuration of its tower."""

    model_config = ConfigDict(extra="allow", frozen=True)

    layers: tuple[int, ...]
    width: int


class BackboneConfig(Note):
    """What a backbone is built of, where its first weights are from, and what input they know.

    classes: of a trained classifier, if the weights are those of a whole one.
    """

    what = "first weights of a student"

    arch: str
    output_stride: int
    weights: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tower: Tower | None = None
    classes: tuple[str, ...] | None = None


class _TowerTrunk(nn.Module):
    """CLIP's ModifiedResNet up to its last feature map."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        for name in (
            "conv1",
            "bn1",
            "act1",
            "conv2",
            "bn2",
            "act2",
            "conv3",
            "bn3",
            "act3",
            "avgpool",
        ):
            setattr(self, name, getattr(tower, name))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            setattr(self, name, getattr(tower, name))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.children():
            x = layer(x)
        return x


class _TransformerTrunk(nn.Module):
    """A vision transformer without its classifier: its patches as a feature map.

    Its positional embedding is interpolated (bicubic, the class token's kept) to the grid of
    whatever image comes, so that maps may be drawn at another size than the training's.
    """

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        self.conv_proj = transformer.conv_proj
        self.class_token = transformer.class_token
        self.encoder = transformer.encoder

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x)
        height, width = patches.shape[-2:]
        tokens = torch.cat(
            [self.class_token.expand(len(x), -1, -1), patches.flatten(2).transpose(1, 2)], dim=1
        )
        tokens = self.encoder.dropout(tokens + self._positions(height, width))
        tokens = self.encoder.ln(self.encoder.layers(tokens))
        features: Tensor = tokens[:, 1:].transpose(1, 2)
        return features.reshape(*features.shape[:2], height, width)

    def _positions(self, height: int, width: int) -> Tensor:
        table: Tensor = self.encoder.pos_embedding
        side = round((table.shape[1] - 1) ** 0.5)
        if (height, width) == (side, side):
            return table
        grid = table[:, 1:].transpose(1, 2).reshape(1, -1, side, side)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


# of timm's, measured (docs/performance.md); elsewhere it gains nothing, or corrupts memory in the
# backward pass (fastvit_t8, with torch 2.14)
FASTER_IN_CHANNELS_LAST = {"EfficientNet", "MobileNetV3", "RepVit"}


class TimmTrunk(nn.Module):
    """A network of timm's up to its last features, those of a transformer's patches as a map."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        from timm.layers.helpers import to_2tuple

        self.network = network
        patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
        self.patch = None if patch is None else to_2tuple(patch)
        fast = type(network).__name__ in FASTER_IN_CHANNELS_LAST
        self.layout = torch.channels_last if fast else torch.contiguous_format
        self.others = int(getattr(network, "num_prefix_tokens", 0))  # tokens of no patch

    def forward(self, x: Tensor) -> Tensor:
        """The features (n, features, rows, columns) of images (n, 3, h, w)."""
        features: Tensor = self.network.forward_features(x.contiguous(memory_format=self.layout))
        if not isinstance(features, Tensor) or features.ndim not in (3, 4):
            raise RuntimeError("its last features are not one map")
        if features.ndim == 4:
            last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
            return features.permute(0, 3, 1, 2) if last else features
        if self.patch is None:
            raise RuntimeError("its tokens are of no patches")
        rows, columns = self.patch
        height, width = x.shape[-2] // rows, x.shape[-1] // columns
        patches = features[:, self.others :].transpose(1, 2)
        return patches.reshape(*patches.shape[:2], height, width)


def build_backbone(config: BackboneConfig) -> tuple[nn.Module, int]:
    """An untrained backbone of `config.arch` and the number of its features."""
    arch = config.arch
    if arch == "teacher_tower":
        return _tower(config)
    if arch.startswith("timm/"):
        return _of_timm(config)
    import torchvision

    network: Any = getattr(torchvision.models, arch)(weights=None)
    if arch.startswith("vit"):
        return _TransformerTrunk(network), network.hidden_dim
    if arch.startswith("convnext"):
        norm, _, linear = network.classifier
        trunk = OrderedDict([("features", network.features), ("norm", norm)])
        return nn.Sequential(trunk), linear.in_features
    if config.output_stride == 16:
        block: Any = network.layer4[0]
        (block.conv2 if hasattr(block, "conv3") else block.conv1).stride = (1, 1)
        block.downsample[0].stride = (1, 1)
    features = network.fc.in_features
    del network.fc, network.avgpool
    return nn.Sequential(OrderedDict(network.named_children())), features


def _tower(config: BackboneConfig) -> tuple[nn.Module, int]:
    from open_clip.modified_resnet import ModifiedResNet

    shape = config.tower
    assert shape is not None  # `weights` writes it for this architecture
    tower = ModifiedResNet(shape.layers, output_dim=1, heads=1, image_size=32, width=shape.width)
    if config.output_stride == 16:
        block: Any = tower.layer4[0]
        block.avgpool = nn.Identity()
        block.downsample[0] = nn.Identity()
    return _TowerTrunk(tower), shape.width * 32


def _of_timm(config: BackboneConfig) -> tuple[nn.Module, int]:
    """Of any image size where that can be asked for; `UserError` for what has no map like that."""
    import timm

    key, name = "student.arch in params.yaml", config.arch.removeprefix("timm/")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.4)
        raise UserError(f"{key}: timm has no {name}; did you mean {', '.join(near) or 'another'}?")
    side, problem = 2 * config.output_stride, ""
    options: list[dict[str, Any]] = [{"dynamic_img_size": True}, {"output_stride": 16}, {}]
    if config.output_stride != 16:
        options.remove({"output_stride": 16})
    for given in options:
        try:
            network: Any = timm.create_model(name, pretrained=False, num_classes=0, **given)
            trunk = TimmTrunk(network).eval()
            with torch.no_grad():
                features = trunk(torch.zeros(1, 3, side, side))
        except Exception as error:  # each family knows other options and sizes, and says so its way
            if ours(error) and not isinstance(error, RuntimeError):  # torch, of shapes
                raise
            problem = problem or reason(error)
            continue
        if features.shape[1:] == (network.num_features, 2, 2):
            return trunk, network.num_features
        cells = features.shape[-1]
        problem = f"it makes {cells} x {cells} cells of {side} pixels a side, not 2 x 2"
    raise UserError(
        f"student.output_stride in params.yaml: {config.arch} gives no map at "
        f"{config.output_stride}: {problem}"
    )


def published_name(arch: str, name: str) -> str:
    """The name that published weights of `arch` have for the backbone's tensor `name`."""
    if arch.startswith("timm/"):
        return name.removeprefix("network.")
    if arch.startswith("convnext") and name.startswith("norm."):
        return name.replace("norm.", "classifier.0.", 1)
    return name
