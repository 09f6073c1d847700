"""`params.yaml` as one frozen tree. Every key is required: the file is the only place of defaults.

What each key means stands in `params.yaml` itself. A section says what its keys may be, no more: a
stage is given what stands in the file, which DVC compares by its value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.runtime.values import (
    OWN_STRIDE,
    WHOLE,
    WINDOWS,
    Arch,
    Count,
    Engine,
    Epochs,
    FirstWeights,
    Head,
    Jitter,
    LastHead,
    Positive,
    Share,
    Side,
    Strength,
    TimmArch,
    TowerPrecision,
)

NONE = "data/none"  # DVC wants every dependency to exist: this one stands for "no such file"
MADE_HERE = {("data", "classifier"), ("data", "warmup")}


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, strict=True, protected_namespaces=()
    )


class Source(Section):
    kind: Literal["folder", "voc2007", "voc2012", "coco2014", "nuswide", "nuswide_spml"]
    root: str
    classes: str
    labels: str
    answers: str
    test_folder: str
    difficult: Literal["negative", "positive", "ignore"]
    max_pixels: Count
    max_bad_share: Share

    @model_validator(mode="after")
    def _fits_the_kind(self) -> Self:
        if self.kind != "folder" and self.test_folder:
            raise ValueError(f"{self.kind} says itself what is for testing: `test_folder` is ''")
        if not self.kind.startswith("voc") and self.difficult != "negative":
            raise ValueError(f"{self.kind} knows no difficult objects: `difficult` is negative")
        return self


class Teacher(Section):
    model: str
    pretrained: str
    checkpoint: str
    sha256: Annotated[str, Field(pattern="^(none|[0-9a-f]{64})$")]
    normalisation: Literal["own", "imagenet"]

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.pretrained != "none") == (self.checkpoint != NONE):
            either = "either `pretrained` (a tag of open_clip) or `checkpoint` (a path)"
            raise ValueError(f"give {either}; the other one is `none` or `{NONE}`")
        return self


class Student(Section):
    arch: Arch | TimmArch
    weights: FirstWeights
    checkpoint: str
    output_stride: Literal[16, 32]
    head: Literal["prior", "library"]
    boost: Positive
    batch_norm: Literal["batch", "frozen"]
    precision: Literal["float32", "bfloat16"]
    input_size: Side

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if self.weights == "teacher" and self.arch != "teacher_tower":
            raise ValueError(f"`weights: teacher` wants `arch: teacher_tower`, not {self.arch}")
        if self.weights.startswith("IMAGENET") and self.arch.startswith(("teacher", "timm")):
            raise ValueError(f"`arch: {self.arch}` has none of torchvision's weights")
        if self.weights == "published" and not self.arch.startswith("timm/"):
            raise ValueError("`weights: published` is for `arch: timm/…`, whose name has their tag")
        if self.weights == "IMAGENET1K_V2" and self.arch not in ("resnet50", "resnet101"):
            raise ValueError(f"torchvision has no IMAGENET1K_V2 of {self.arch}; use IMAGENET1K_V1")
        if self.arch in OWN_STRIDE and self.output_stride != OWN_STRIDE[self.arch]:
            raise ValueError(f"the `output_stride` of {self.arch} is {OWN_STRIDE[self.arch]}")
        if self.arch.startswith(WHOLE) and self.input_size % self.output_stride:
            raise ValueError(f"`input_size`: {self.arch} wants multiples of {self.output_stride}")
        if self.input_size < (least := 2 * self.output_stride):
            raise ValueError(f"`input_size` must be twice `output_stride`: {least}")
        if (self.weights in ("checkpoint", "classifier")) != (self.checkpoint != NONE):
            both = f"`weights: checkpoint` or `classifier` and a `checkpoint` other than {NONE}"
            raise ValueError(f"{both} go together")
        if self.weights == "classifier" and Path(self.checkpoint).parts[:2] in MADE_HERE:
            raise ValueError(
                f"`checkpoint`: {self.checkpoint} is made by the pipeline itself: copy it elsewhere"
            )
        return self


class ClassText(Section):
    templates: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _one_place_for_the_name(self) -> Self:
        if wrong := [each for each in self.templates if each.count("{}") != 1]:
            raise ValueError(f"the template {wrong[0]!r} needs one {{}} where the name goes")
        return self


class TeacherLook(Section):
    view_size: Side
    precision: TowerPrecision
    engine: Engine

    @model_validator(mode="after")
    def _engine_has_the_precision(self) -> Self:
        if self.engine == "onnxruntime" and self.precision != "float32":
            raise ValueError("`engine: onnxruntime` computes in `precision: float32` alone")
        return self


class GlobalClip(TeacherLook):
    aspect: Literal["squash", "keep"]


class Labels(Section):
    temperature: Literal["learned"] | Positive
    precision: Literal["double", "half"]
    floor: Literal["one_over_classes"] | Annotated[float, Field(ge=0, lt=1)]
    centre: Literal["none", "class_mean"]


class Bias(Section):
    debias: bool
    entropy_limit: Positive
    entropy_unit: Literal["nats", "normalised"]
    min_count: Count


class Optimiser(Section):
    batch: Count
    epoch_steps: Epochs
    lr: Positive
    head_lr_factor: Positive
    held_out: Annotated[float, Field(ge=0, le=0.5)]


class Warmup(Section):
    epochs: Epochs
    head: Head
    sharpness: Positive


class CamBoxes(Section):
    views: Literal["cam", "random", "grid", "windows", "file"]
    boxes: str
    selection: Literal["quantile", "fixed", "search"]
    mean_views: Positive
    threshold: Share
    input_size: Side
    cam_threshold: Annotated[float, Field(ge=0, lt=1)]
    box: Literal["tight", "first_last"]
    offset: Share

    @model_validator(mode="after")
    def _views_have_what_they_need(self) -> Self:
        if (self.views == "file") != (self.boxes != NONE):
            raise ValueError(f"`views: file` and `boxes` other than {NONE} go together")
        if self.views == "random" and self.mean_views % 1:
            raise ValueError("`views: random` makes as many an image: `mean_views` must be whole")
        if self.views == "grid" and self.mean_views**0.5 % 1:
            raise ValueError("`views: grid` is square: `mean_views` must be 1, 4, 9, 16, …")
        if self.views == "windows" and self.mean_views not in WINDOWS:
            raise ValueError(
                "`views: windows` are 4 (2 x 2), 9 (3 x 3), 13 (both) or 29: `mean_views`"
            )
        if self.selection == "search" and self.mean_views <= 1:
            raise ValueError("`selection: search` accepts mean_views ± 1, which must be above 0")
        return self


class LocalClip(TeacherLook):
    source: Literal["original", "resized"]
    aspect: Literal["keep", "square"]
    rounding: Literal["stride", "pixel"]

    @model_validator(mode="after")
    def _rounding_is_of_a_kept_aspect(self) -> Self:
        if self.aspect == "square" and self.rounding == "pixel":
            raise ValueError("with `aspect: square` there is nothing to round: `rounding: stride`")
        return self


class FuseLabels(Section):
    debias: bool
    no_view: Literal["keep", "zeros"]
    alpha: Share


class Train(Section):
    epochs: Epochs
    head: LastHead
    sharpness: Positive
    consistency: Strength
    jitter: Jitter
    stop: Literal["first_local_minimum", "published", "last_epoch"]
    stop_positive: Share


class Thresholds(Section):
    precision: Literal["none"] | Annotated[float, Field(gt=0, lt=1)]


class Report(Section):
    gallery: Count
    samples: Count


class Params(Section):
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    source: Source
    teacher: Teacher
    student: Student
    class_text: ClassText
    global_clip: GlobalClip
    labels: Labels
    bias: Bias
    optimiser: Optimiser
    warmup: Warmup
    cam_boxes: CamBoxes
    local_clip: LocalClip
    fuse_labels: FuseLabels
    train: Train
    thresholds: Thresholds
    report: Report

    @model_validator(mode="after")
    def _maps_have_whole_cells(self) -> Self:
        stride = self.student.output_stride
        if self.student.arch.startswith(WHOLE) and self.cam_boxes.input_size % stride:
            raise ValueError(f"`cam_boxes.input_size` is no multiple of the student's {stride}")
        return self

    @model_validator(mode="after")
    def _held_out_for_a_choice(self) -> Self:
        if self.train.head == "likeliest" and not self.optimiser.held_out:
            raise ValueError("`train.head: likeliest` wants `optimiser.held_out` above 0: say 0.1")
        return self
