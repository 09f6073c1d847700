"""`ccd export`: the classifier as one ONNX file; all but the decoding and resizing is inside."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stages.command.exported import made_of
from stages.command.predict import cuts_in
from stages.method.cuts import MOST, Cuts
from stages.method.cuts import logits_of as logits_of_probabilities
from stages.models.engine import OPSET, must_be_installed, unprinted
from stages.models.student import Student, logits_of
from stages.runtime.errors import UserError, ours, reason

CLOSE = 1e-4  # of probabilities
FINITE = float(logits_of_probabilities(np.array([MOST]))[0])  # the greatest that cuts know of
ABOUT = (
    "images: whole photographs, resized to size x size, uint8, RGB, (n, size, size, 3). "
    "probabilities: (n, classes). A class is called where it reaches its threshold."
)


class Deployed(nn.Module):
    """Pixels in, calibrated probabilities out."""

    scale: Tensor
    offset: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, student: Student, cuts: Cuts | None) -> None:
        super().__init__()
        self.student = student
        classes = len(student.config.classes)
        scale = np.ones(classes) if cuts is None else cuts.scale
        offset = np.zeros(classes) if cuts is None else cuts.offset
        self.register_buffer("scale", torch.tensor(scale.tolist()))
        self.register_buffer("offset", torch.tensor(offset.tolist()))
        config = student.config
        self.register_buffer("mean", 255 * torch.tensor(config.mean).view(1, 3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(config.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(n, classes) of uint8 images (n, size, size, 3)."""
        views = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits = logits_of(self.student.class_activation_maps(views)).clamp(-FINITE, FINITE)
        return (logits * self.scale + self.offset).sigmoid()


def export(weights: Path, thresholds: Path | None) -> tuple[bytes, bytes]:
    """The content of an ONNX file of a classifier, and of a JSON file with the notes in it.

    thresholds: the file of its own cuts; without it probabilities are as the student says them, and
    cut at a half. Some engines, such as a browser's, do not give out what an ONNX file holds beside
    its graph, so the notes are also by themselves. Raises `UserError` where ONNX Runtime would say
    something else than torch.
    """
    must_be_installed("ccd export")
    digests = made_of(weights, thresholds)
    cuts = None if thresholds is None else cuts_in(thresholds)
    student = Student.load(weights, "cpu")
    if made_of(weights, thresholds) != digests:
        raise UserError(f"ccd export: {weights} or its cuts changed meanwhile: export again")
    if student.config.arch.startswith("vit_"):  # the grid of its positions is computed, not traced
        raise UserError(f"ccd export: {student.config.arch} cannot be exported")
    student.backbone.float()
    size, classes = student.config.size, student.config.classes
    deployed = Deployed(student, cuts).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8, generator=generator)
    content = io.BytesIO()
    call: Any = torch.onnx.export  # untyped
    with torch.no_grad():
        expected = deployed(images)
    try:
        with warnings.catch_warnings(), unprinted(), torch.no_grad():
            warnings.simplefilter("ignore")
            call(
                deployed,
                (images[:2],),
                content,
                input_names=["images"],
                output_names=["probabilities"],
                dynamic_axes={"images": {0: "n"}, "probabilities": {0: "n"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except MemoryError:
        raise
    except Exception as error:  # the exporter has many of its own
        if ours(error):
            raise
        raise UserError(
            f"ccd export: {student.config.arch} cannot be exported: {reason(error)}"
        ) from None
    at = [0.5] * len(classes) if cuts is None else cuts.threshold.tolist()
    notes = {
        "about": ABOUT,
        "classes": list(classes),
        "thresholds": [round(float(t), 6) for t in at],
        "size": size,
        "made_of": digests,
    }
    said = with_notes(
        content.getvalue(),
        {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in notes.items()
        },
    )
    must_agree(said, images, expected)
    return said, (json.dumps(notes, indent=2, ensure_ascii=False) + "\n").encode()


def with_notes(content: bytes, notes: dict[str, str]) -> bytes:
    """An ONNX model with these among its own properties."""
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, notes)
    said: bytes = model.SerializeToString()
    return said


def must_agree(content: bytes, images: Tensor, expected: Tensor) -> None:
    """Raise `UserError` unless ONNX Runtime says what torch says of some images."""
    from onnxruntime import InferenceSession

    session = InferenceSession(content, providers=["CPUExecutionProvider"])
    (said,) = session.run(["probabilities"], {"images": images.numpy()})
    off = float(np.abs(said - expected.numpy()).max())
    if not off <= CLOSE:
        raise UserError(f"ccd export: ONNX Runtime says something else than torch, by {off:.2g}")
