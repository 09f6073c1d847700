"""`params.yaml` as one frozen tree. Every key is required: the file is the only place of defaults.

The file is read as YAML 1.2, as DVC reads it: `1e-5` is a number in both. What each key means
stands in `params.yaml` itself.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.errors import UserError

PARAMS_FILE = Path("params.yaml")
NONE = "data/none"  # DVC wants every dependency to exist: this one stands for "no such file"

MADE_HERE = {("data", "classifier"), ("data", "warmup")}

OWN_STRIDE = {"vit_b_16": 16, "vit_b_32": 32} | dict.fromkeys(
    ("convnext_tiny", "convnext_small", "convnext_base"), 32
)

Sections = TypeVar("Sections", bound=BaseModel)
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
TowerPrecision = Literal["float32", "bfloat16", "float16"]
Side = Annotated[int, Field(ge=32, le=8192)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


class Source(Section):
    kind: Literal["folder", "voc2007", "voc2012", "coco2014", "nuswide", "nuswide_spml"]
    root: str
    classes: str
    labels: str
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
        given = [self.pretrained != "none", self.checkpoint != NONE]
        if sum(given) != 1:
            raise ValueError(
                "give either `pretrained` (a tag of open_clip) or `checkpoint` (a path); "
                f"the other one is `none` or `{NONE}`"
            )
        return self


class Student(Section):
    arch: Literal[
        "teacher_tower",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "convnext_tiny",
        "convnext_small",
        "convnext_base",
        "vit_b_16",
        "vit_b_32",
    ]
    weights: Literal[
        "teacher", "random", "checkpoint", "classifier", "IMAGENET1K_V1", "IMAGENET1K_V2"
    ]
    checkpoint: str
    output_stride: Literal[16, 32]
    head: Literal["prior", "library"]
    boost: Positive
    batch_norm: Literal["batch", "frozen"]
    precision: Literal["float32", "bfloat16"]
    input_size: Side

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        if (self.weights == "teacher") and (self.arch != "teacher_tower"):
            raise ValueError(f"`weights: teacher` wants `arch: teacher_tower`, not {self.arch}")
        if self.weights.startswith("IMAGENET") and self.arch == "teacher_tower":
            raise ValueError("`arch: teacher_tower` has no ImageNet weights; use `teacher`")
        if self.weights == "IMAGENET1K_V2" and self.arch not in ("resnet50", "resnet101"):
            raise ValueError(f"torchvision has no IMAGENET1K_V2 of {self.arch}; use IMAGENET1K_V1")
        if self.arch in OWN_STRIDE and self.output_stride != OWN_STRIDE[self.arch]:
            raise ValueError(f"the `output_stride` of {self.arch} is {OWN_STRIDE[self.arch]}")
        if self.arch.startswith("vit") and self.input_size % self.output_stride:
            raise ValueError(
                f"`input_size` of {self.arch} is no multiple of its patch, {self.output_stride}"
            )
        if self.input_size < 2 * self.output_stride:
            raise ValueError(
                f"`input_size` must be twice `output_stride`: {2 * self.output_stride}"
            )
        if (self.weights in ("checkpoint", "classifier")) != (self.checkpoint != NONE):
            raise ValueError(
                f"`weights: checkpoint` or `classifier` and a `checkpoint` other than {NONE} go "
                "together"
            )
        if self.weights == "classifier" and Path(self.checkpoint).parts[:2] in MADE_HERE:
            raise ValueError(
                f"`checkpoint`: {self.checkpoint} is made by the pipeline itself: copy it elsewhere"
            )
        return self


class ClassText(Section):
    templates: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_place_for_the_name(self) -> Self:
        for template in self.templates:
            if template.count("{}") != 1:
                raise ValueError(f"the template {template!r} needs one {{}} where the name goes")
        return self


class GlobalClip(Section):
    view_size: Side
    aspect: Literal["squash", "keep"]
    precision: TowerPrecision


class Labels(Section):
    temperature: Literal["learned"] | Positive
    precision: Literal["double", "half"]
    floor: Literal["one_over_classes"] | Annotated[float, Field(ge=0, lt=1)]
    form: Literal["softmax", "independent"]
    centre: Literal["none", "class_mean"]
    slope: Positive
    cut: Literal["otsu"] | float
    none_entropy: Share


class Bias(Section):
    debias: bool
    entropy_limit: Positive
    entropy_unit: Literal["nats", "normalised"]
    min_count: Count


class Optimiser(Section):
    batch: Count
    lr: Positive
    head_lr_factor: Positive


class Warmup(Section):
    epochs: Annotated[int, Field(ge=0)]


class CamBoxes(Section):
    views: Literal["cam", "random", "grid", "file"]
    boxes: str
    selection: Literal["quantile", "fixed", "search"]
    mean_views: Positive
    threshold: Share
    margin: Literal["none", "class_mean"]
    input_size: Side
    cam_threshold: Annotated[float, Field(ge=0, lt=1)]
    map: Literal["cam", "layercam"]
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)]
    mirror: bool
    box: Literal["tight", "first_last", "regions"]
    offset: Share

    def side(self, scale: float) -> int:
        """Of the student's input at a scale: to the nearest 32 pixels, unless as it is."""
        return self.input_size if scale == 1 else round(scale * self.input_size / 32) * 32

    @model_validator(mode="after")
    def _scales_differ(self) -> Self:
        sides = [self.side(scale) for scale in self.scales]
        if len(set(sides)) < len(sides) or max(sides) > 8192:
            raise ValueError(
                "`scales` must differ by 32 pixels of the input, and give 8192 at most, not "
                f"{', '.join(map(str, sides))}"
            )
        return self

    @model_validator(mode="after")
    def _views_have_what_they_need(self) -> Self:
        if (self.views == "file") != (self.boxes != NONE):
            raise ValueError(f"`views: file` and `boxes` other than {NONE} go together")
        if self.views == "random" and self.mean_views % 1:
            raise ValueError("`views: random` makes as many an image: `mean_views` must be whole")
        if self.views == "grid" and self.mean_views**0.5 % 1:
            raise ValueError("`views: grid` is square: `mean_views` must be 1, 4, 9, 16, …")
        if self.margin != "none" and self.selection != "quantile":
            raise ValueError(f"`margin: {self.margin}` is for `selection: quantile` alone")
        if self.selection == "search" and self.mean_views <= 1:
            raise ValueError("`selection: search` accepts mean_views ± 1, which must be above 0")
        return self


class LocalClip(Section):
    view_size: Side
    source: Literal["original", "resized"]
    aspect: Literal["keep", "square"]
    rounding: Literal["stride", "pixel"]
    precision: TowerPrecision

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
    epochs: Annotated[int, Field(ge=0)]
    consistency: Annotated[float, Field(ge=0)]
    average: Annotated[float, Field(ge=0, lt=1)]
    jitter: Annotated[tuple[float, ...], Field(min_length=4, max_length=4)]
    stop: Literal["first_local_minimum", "published", "last_epoch"]
    stop_positive: Share

    @model_validator(mode="after")
    def _jitter_is_what_torchvision_takes(self) -> Self:
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError("`jitter` must not be negative, and its hue not above 0.5")
        return self


class Report(Section):
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
    report: Report

    @model_validator(mode="after")
    def _maps_have_whole_cells(self) -> Self:
        stride = self.student.output_stride
        if self.student.arch.startswith("vit") and self.cam_boxes.input_size % stride:
            raise ValueError(
                f"`cam_boxes.input_size` is no multiple of the patch of {self.student.arch}, "
                f"{stride}"
            )
        least = min(self.cam_boxes.scales)
        if least < 1 and self.cam_boxes.side(least) < 2 * stride:
            raise ValueError(
                f"`cam_boxes.scales`: {least} of `cam_boxes.input_size` is less than twice "
                f"`student.output_stride`: {2 * stride}"
            )
        return self

    @model_validator(mode="after")
    def _views_of_no_class_say_nothing(self) -> Self:
        if self.labels.none_entropy < 1 and self.fuse_labels.no_view == "zeros":
            raise ValueError(
                "`labels.none_entropy` below 1 leaves views out, for which `fuse_labels.no_view: "
                "zeros` would count what they do not say: set it to keep"
            )
        return self

    @model_validator(mode="after")
    def _independent_labels_have_no_bias(self) -> Self:
        if self.labels.form == "independent":
            if self.bias.debias or self.fuse_labels.debias:
                raise ValueError(
                    "`labels.form: independent` has no bias to divide by: set `bias.debias` and "
                    "`fuse_labels.debias` to false"
                )
            if self.fuse_labels.no_view == "zeros" or self.labels.centre != "none":
                raise ValueError(
                    "`labels.form: independent` goes with `fuse_labels.no_view: keep` and "
                    "`labels.centre: none`"
                )
        return self


def parse_params(raw: Any, path: Path = PARAMS_FILE) -> Params:
    """Check `raw`, what YAML made of `path`.

    Raises `UserError` that names the file, the key and, for a misspelt one, the nearest valid key.
    """
    return checked(Params, raw, path)


def checked(model: type[Sections], raw: Any, path: Path) -> Sections:
    """As `parse_params`, for a file of other parameters."""
    if not isinstance(raw, dict):
        raise UserError(f"{path}: expected sections of keys, found {type(raw).__name__}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        problems = [_explain(problem, model) for problem in error.errors()]
    # a misspelt key shows twice, as unknown and as missing: say the unknown first
    problems.sort(key=lambda line: "is missing" in line)
    raise UserError(f"{path}: " + f"\n{path}: ".join(problems))


def read_yaml(path: Path) -> Any:
    """The content of a YAML file of the project; `UserError` if there is none."""
    try:
        return YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is not here ({Path.cwd()}): run from the project's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None


def _explain(problem: Any, model: type[BaseModel]) -> str:
    place = [
        str(part)
        for part in problem["loc"]
        if part != "float" and not str(part).startswith(("literal", "constrained"))
    ]
    key = ".".join(place)
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(place[:-1], model)
        near = difflib.get_close_matches(place[-1], fields, n=1, cutoff=0.5)
        hint = (
            f"did you mean `{'.'.join([*place[:-1], near[0]])}`?"
            if near
            else f"valid keys: {', '.join(fields)}"
        )
        return f"`{key}` is no parameter; {hint}"
    if problem["type"] == "missing":
        return f"`{key}` is missing"
    if problem["type"] == "value_error":
        return f"`{key}`: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"])
    return f"`{key}` is {problem['input']!r}: {problem['msg'].lower()}"


def _fields_at(place: list[str], model: Any) -> list[str]:
    for part in place:
        model = model.model_fields[part].annotation
    return list(model.model_fields)
