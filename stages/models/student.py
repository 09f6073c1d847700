"""The student: a backbone with a 1x1 head, which gives class activation maps in the same pass."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from stages.images.normalise import normalise
from stages.models.backbones import BackboneConfig, TimmTrunk, build_backbone
from stages.models.device import batch_size, move
from stages.models.folding import fold_batch_norm
from stages.models.weights import load_weights
from stages.runtime.errors import UserError
from stages.runtime.progress import say


class StudentConfig(BackboneConfig):
    """All that a student's weights do not say; it lies beside them as JSON.

    batch_norm: batch or frozen; boost: factor on positive activations before pooling; head: how its
    first weights were drawn; precision: of its training and use; size: side of its input; epoch:
    the one that was kept.
    """

    what = "trained student"

    batch_norm: str
    boost: float
    head: str
    precision: str
    size: int
    classes: tuple[str, ...]
    epoch: int | None = None


class Student(nn.Module):
    """backbone: images to features; head: a 1x1 convolution to one map a class."""

    def __init__(self, backbone: nn.Module, features: int, config: StudentConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(features, len(config.classes), kernel_size=1)
        self.config = config

    def forward(self, views: Tensor) -> Tensor:
        """Logits (n, classes) of uint8 views (n, 3, h, w): what a training learns from."""
        return logits_of(self.class_activation_maps(self._inputs(views)).float())

    def class_activation_maps(self, images: Tensor) -> Tensor:
        """The class activation maps (n, classes, h, w) of normalised images (Eq. 4)."""
        maps: Tensor = self.head(self.backbone(images).to(self.head.weight.dtype))
        return torch.where(maps > 0, maps * self.config.boost, maps)

    @torch.inference_mode()
    def maps(self, views: Tensor) -> Tensor:
        """The class activation maps, on the device, of uint8 views (n, 3, h, w)."""
        return self.class_activation_maps(self._inputs(views))

    @torch.inference_mode()
    def pooled_features(self, views: Tensor) -> Tensor:
        """The backbone's features, pooled (n, 2, features): of views, and of mirrored views."""
        images = self._inputs(views)
        both = [self.backbone(one).mean(dim=(2, 3)).float() for one in (images, images.flip(-1))]
        return torch.stack(both, dim=1)

    def scores(self, views: Tensor) -> Tensor:
        """Probabilities (n, classes), on the device, of uint8 views (n, 3, h, w)."""
        return logits_of(self.maps(views)).sigmoid()

    def batch_size(self, side: int) -> int:
        """How many views of side x side it looks at in one pass on this machine."""

        def look(views: int) -> Tensor:
            return self.maps(torch.zeros(views, 3, side, side))

        return batch_size(str(self.head.weight.device), side, look)

    def _inputs(self, views: Tensor) -> Tensor:
        device = str(self.head.weight.device)
        images = normalise(move(views, device), self.config.mean, self.config.std)
        return images.to(next(self.backbone.parameters()).dtype)

    @staticmethod
    def load(path: Path, device: str, index: str | None = None) -> Student:
        """A trained student, for inference; refused if of another `index`.

        Its backbone is in the precision it was trained in, its head always in single precision.
        """
        tensors, config = load_weights(path, StudentConfig, index)
        student = build_student(config)
        student.load_state_dict(tensors)
        return student.for_inference(device)

    def for_inference(self, device: str) -> Student:
        """The same on a device, folded where that says the same."""
        config = self.config
        side = 2 * config.output_stride
        noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        if not fold_batch_norm(self.backbone, lambda: self.backbone(noise)):
            say(f"{config.arch} does not say the same when folded: it stays as it is, slower")
        self.backbone.to(getattr(torch, config.precision))
        return self.to(device)


def logits_of(maps: Tensor) -> Tensor:
    """Global average pooling: (n, classes, h, w) to (n, classes)."""
    return maps.mean(dim=(2, 3))


def build_student(config: StudentConfig) -> Student:
    """An untrained student, channels last but for the networks of timm's that gain nothing by it.

    Its head is torch's own (library) or expects one positive class an image (prior).
    """
    backbone, features = build_backbone(config)
    student = Student(backbone, features, config)
    if config.head == "prior":
        nn.init.normal_(student.head.weight, std=0.01)
        rate = torch.tensor(1 / max(len(config.classes), 2))
        assert student.head.bias is not None
        nn.init.constant_(student.head.bias, float(torch.logit(rate)))
    student.to(memory_format=torch.channels_last)
    if isinstance(backbone, TimmTrunk):
        backbone.to(memory_format=backbone.layout)
    return student


def first_student(
    tensors: dict[str, Tensor], first: BackboneConfig, config: StudentConfig
) -> Student:
    """A student of its first weights, `tensors`; its head is drawn, unless it is in them."""
    student = build_student(config)
    set_first_weights(student, tensors, first)
    return student


def set_first_weights(student: Student, tensors: dict[str, Tensor], first: BackboneConfig) -> None:
    """Set a student to the weights of a backbone, or of a classifier of the same classes."""
    set_weights(student, named_for_student(tensors, first, student.config.classes))


def set_weights(student: Student, weights: dict[str, Tensor]) -> None:
    """Set a student to these weights; its head stays as it is if theirs is missing."""
    own = {name: value for name, value in student.state_dict().items() if name.startswith("head.")}
    student.load_state_dict(own | weights)


def named_for_student(
    tensors: dict[str, Tensor], first: BackboneConfig, classes: tuple[str, ...]
) -> dict[str, Tensor]:
    """The same weights by the names that a student of these `classes` has for them."""
    if first.classes is None:
        return {f"backbone.{name}": value for name, value in tensors.items()}
    if first.classes != classes:
        raise UserError(
            "student.checkpoint in params.yaml: that classifier knows other classes: "
            f"{', '.join(first.classes)[:100]}"
        )
    return tensors
