"""What a value in `params.yaml` may be, beside a text and a truth value."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Hue = Annotated[float, Field(ge=0, le=0.5)]
Jitter = Annotated[tuple[Strength, Strength, Strength, Hue], Field(strict=False)]  # torchvision's
Head = Literal["gradient", "closed_form"]
LastHead = Literal["gradient", "closed_form", "likeliest"]
Count = Annotated[int, Field(ge=1)]
Epochs = Annotated[int, Field(ge=0)]
TowerPrecision = Literal["float32", "bfloat16", "float16"]
Side = Annotated[int, Field(ge=32, le=8192)]
Arch = Literal[
    "teacher_tower", "resnet18", "resnet34", "resnet50", "resnet101", "convnext_tiny",
    "convnext_small", "convnext_base", "vit_b_16", "vit_b_32",
]  # fmt: skip
TimmArch = Annotated[str, Field(pattern=r"^timm/[\w.-]+$")]
Engine = Literal["torch", "onnxruntime"]
FirstWeights = Literal[
    "teacher", "random", "checkpoint", "classifier", "published", "IMAGENET1K_V1", "IMAGENET1K_V2"
]

OWN_STRIDE = {"vit_b_16": 16, "vit_b_32": 32} | dict.fromkeys(
    ("convnext_tiny", "convnext_small", "convnext_base"), 32
)
WHOLE = ("vit", "timm/")  # take whole patches, or may
WINDOWS = (4, 9, 13, 29)  # 2 x 2; 3 x 3 alone; both; and 4 x 4 of them
