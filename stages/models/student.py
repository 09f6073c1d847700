"""The student: a ResNet with a 1x1 head, which gives class activation maps in the same pass."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from stages.errors import UserError
from stages.images.augment import normalise
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
        maps: Tensor = self.head(self.backbone(images))
        return torch.where(maps > 0, maps * self.boost, maps)


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


def build_backbone(note: Note) -> tuple[nn.Module, int]:
    """An untrained backbone of `note["arch"]` and the number of its features."""
    arch = note["arch"]
    if arch == "teacher_tower":
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
    resnet: Any = getattr(torchvision.models, arch)(weights=None)
    if note["output_stride"] == 16:
        block = resnet.layer4[0]
        (block.conv2 if hasattr(block, "conv3") else block.conv1).stride = (1, 1)
        block.downsample[0].stride = (1, 1)
    features = resnet.fc.in_features
    del resnet.fc, resnet.avgpool
    return nn.Sequential(OrderedDict(resnet.named_children())), features


def build_student(note: Note, classes: int) -> Student:
    """An untrained student, channels last; its head expects one positive class an image."""
    backbone, features = build_backbone(note)
    student = Student(backbone, features, classes, note["boost"])
    nn.init.normal_(student.head.weight, std=0.01)
    rate = torch.tensor(1 / max(classes, 2))
    assert student.head.bias is not None
    nn.init.constant_(student.head.bias, float(torch.logit(rate)))
    return student.to(memory_format=torch.channels_last)


def load_student(path: Path, device: str, index: str | None = None) -> tuple[Student, Note]:
    """A trained student, for inference, and its note; refused if of another `index`."""
    tensors, note = load_weights(path, index)
    if "classes" not in note:
        raise UserError(f"{path} is no trained student: its .json names no classes")
    student = build_student(note, len(note["classes"]))
    student.load_state_dict(tensors)
    return student.to(device).eval(), note


@torch.inference_mode()
def activation_maps(student: Student, note: Note, views: Tensor, device: str) -> Tensor:
    """The class activation maps (n, classes, h, w) of uint8 views (n, 3, height, width)."""
    images = normalise(views.to(device), tuple(note["mean"]), tuple(note["std"]))
    maps: Tensor = student(images)
    return maps.cpu()
