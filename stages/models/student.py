"""The student: a backbone with a 1x1 head, which gives class activation maps in the same pass."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from stages import machine
from stages.errors import UserError
from stages.images.augment import normalise
from stages.models.folding import fold_batch_norm
from stages.models.weights import Note, load_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Student(nn.Module):
    """backbone: images to features; head: a 1x1 convolution to one map a class.

    boost: factor on the positive activations of the maps, before pooling.
    """

    def __init__(self, backbone: nn.Module, features: int, classes: int, boost: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(features, classes, kernel_size=1)
        self.boost = boost

    def forward(self, images: Tensor) -> Tensor:
        """The class activation maps (n, classes, h, w) of normalised images (Eq. 4)."""
        maps: Tensor = self.head(self.backbone(images).to(self.head.weight.dtype))
        return torch.where(maps > 0, maps * self.boost, maps)

    def evidence(self, images: Tensor) -> Tensor:
        """As `forward`, of what speaks for a class alone: LayerCAM (Jiang et al. 2021).

        LayerCAM weighs each activation of the last layer by its own positive gradient. Here the
        gradient is the head's weight, times `boost` where the map is positive, so that no backward
        pass is needed; that of the pooling is the same everywhere and left out.
        """
        features = self.backbone(images).to(self.head.weight.dtype)
        maps = self.head(features)
        boost = torch.where(maps > 0, torch.full_like(maps, self.boost), torch.ones_like(maps))
        return F.relu(boost * F.conv2d(features, F.relu(self.head.weight)))


def logits_of(maps: Tensor) -> Tensor:
    """Global average pooling: (n, classes, h, w) to (n, classes)."""
    return maps.mean(dim=(2, 3))


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


def build_backbone(note: Note) -> tuple[nn.Module, int]:
    """An untrained backbone of `note["arch"]` and the number of its features."""
    arch = note["arch"]
    if arch == "teacher_tower":
        return _tower(note)
    network: Any = getattr(torchvision.models, arch)(weights=None)
    if arch.startswith("vit"):
        return _TransformerTrunk(network), network.hidden_dim
    if arch.startswith("convnext"):
        norm, _, linear = network.classifier
        trunk = OrderedDict([("features", network.features), ("norm", norm)])
        return nn.Sequential(trunk), linear.in_features
    if note["output_stride"] == 16:
        block: Any = network.layer4[0]
        (block.conv2 if hasattr(block, "conv3") else block.conv1).stride = (1, 1)
        block.downsample[0].stride = (1, 1)
    features = network.fc.in_features
    del network.fc, network.avgpool
    return nn.Sequential(OrderedDict(network.named_children())), features


def _tower(note: Note) -> tuple[nn.Module, int]:
    from open_clip.modified_resnet import ModifiedResNet

    config = note["tower"]
    tower = ModifiedResNet(
        config["layers"], output_dim=1, heads=1, image_size=32, width=config["width"]
    )
    if note["output_stride"] == 16:
        block: Any = tower.layer4[0]
        block.avgpool = nn.Identity()
        block.downsample[0] = nn.Identity()
    return _TowerTrunk(tower), config["width"] * 32


def published_name(arch: str, name: str) -> str:
    """The name that torchvision's weights of `arch` have for the backbone's tensor `name`."""
    if arch.startswith("convnext") and name.startswith("norm."):
        return name.replace("norm.", "classifier.0.", 1)
    return name


def build_student(note: Note, classes: int) -> Student:
    """An untrained student, channels last.

    Its head is torch's own (`note["head"]` is library) or expects one positive class an image.
    """
    backbone, features = build_backbone(note)
    student = Student(backbone, features, classes, note["boost"])
    if note["head"] == "prior":
        nn.init.normal_(student.head.weight, std=0.01)
        rate = torch.tensor(1 / max(classes, 2))
        assert student.head.bias is not None
        nn.init.constant_(student.head.bias, float(torch.logit(rate)))
    return student.to(memory_format=torch.channels_last)


def start_from(student: Student, tensors: dict[str, Tensor], first: Note, note: Note) -> None:
    """Set a student to its first weights: of a backbone, or of a classifier of the same classes.

    first: what came with the weights; note: of the student.
    """
    if "classes" not in first:
        student.backbone.load_state_dict(tensors)
        return
    if first["classes"] != note["classes"]:
        raise UserError(
            "student.checkpoint in params.yaml: that classifier knows other classes: "
            f"{', '.join(first['classes'])[:100]}"
        )
    student.load_state_dict(tensors)


def load_student(path: Path, device: str, index: str | None = None) -> tuple[Student, Note]:
    """A trained student, for inference, and its note; refused if of another `index`.

    Its backbone is in the precision it was trained in, its head always in single precision.
    """
    tensors, note = load_weights(path, index)
    if "classes" not in note:
        raise UserError(f"{path} is no trained student: its .json names no classes")
    student = build_student(note, len(note["classes"]))
    student.load_state_dict(tensors)
    fold_batch_norm(student.eval())
    student.backbone.to(getattr(torch, note["precision"]))
    return student.to(device), note


def fitting_batch(student: Student, note: Note, size: int, device: str) -> int:
    """How many views of size x size the student looks at in one pass on this machine."""

    def look(views: int) -> Tensor:
        return activation_maps(student, note, torch.zeros(views, 3, size, size), device)

    return machine.batch(device, size, look)


@torch.inference_mode()
def activation_maps(student: Student, note: Note, views: Tensor, device: str) -> Tensor:
    """The class activation maps (n, classes, h, w), on the device, of uint8 views (n, 3, …)."""
    maps: Tensor = student(_inputs(note, views, device))
    return maps


@torch.inference_mode()
def layer_cam(student: Student, note: Note, views: Tensor, device: str) -> Tensor:
    """As `activation_maps`, of what speaks for a class alone."""
    return student.evidence(_inputs(note, views, device))


def _inputs(note: Note, views: Tensor, device: str) -> Tensor:
    on_device = machine.move(views, device)
    images = normalise(on_device, tuple(note["mean"]), tuple(note["std"]))
    return images.to(getattr(torch, note["precision"]))
