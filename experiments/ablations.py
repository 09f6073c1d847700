"""The ablations, the paper's and of what it does not do: which parameters each row changes.

Every row starts from the `params.yaml` that is committed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from stages.command.preset import DEMO
from stages.command.preset import preset as preset_of
from stages.runtime.params import Params

# of a parameter
Value = bool | int | float | str | Sequence[str] | Sequence[float]
Changes = dict[str, Value]


class Ablation(NamedTuple):
    """A table, or a curve over one parameter.

    rows: what each changes. axis: of a curve, whose rows are its values. boxes: needs the views of
    `experiments.object_boxes`; classifier: what changes in the first update of which it needs the
    end. published: mAP on VOC 2012 by row. per_class: is of average precisions class by class.
    """

    rows: dict[str, Changes]
    axis: str = ""
    boxes: bool = False
    classifier: Changes | None = None
    published: dict[str, float] | None = None
    per_class: bool = False


UNDIVIDED: Changes = {"bias.debias": False, "fuse_labels.debias": False}
DIVIDED: Changes = {"bias.debias": True, "fuse_labels.debias": True}
BIASED: Changes = UNDIVIDED | {"labels.floor": 0.0}
BY_GRADIENT: Changes = {"warmup.head": "gradient", "train.head": "gradient"}
REFITTED: Changes = BY_GRADIENT | {"train.head": "closed_form"}
INSTEAD: Changes = {"warmup.head": "closed_form", "warmup.epochs": 0}
UNTRAINED: Changes = {
    "student.boost": 1.0,
    "warmup.epochs": 0,
    "warmup.head": "closed_form",
    "cam_boxes.views": "windows",
    "cam_boxes.mean_views": 13.0,
}
LAST_EPOCH: Changes = {"train.stop": "last_epoch"}
AROUND, EXACT = "data/objects_around.csv", "data/objects_exact.csv"
FIRST = "data/first_classifier"
AGAIN: Changes = {
    "student.weights": "classifier",
    "student.checkpoint": FIRST,
    "warmup.epochs": 0,
}
DEMO_TEMPERATURE = 0.077  # about what the demo's teachers learn
PROMPTS = [
    "a photo of the {}",
    "a photo of a {}",
    "a picture of the {}",
    "a drawing of a {}",
    "an image of the {}",
]


def ablations(params: Params, preset: str = "") -> dict[str, Ablation]:
    """All of them, by name.

    params: those that the rows start from, of which some take multiples. preset: of which data set
    they are, with the recommended recipe; or the demo's.
    """
    demo = preset in ("", DEMO)
    recommended = REFITTED | UNDIVIDED if demo else {}
    views, temperature = params.cam_boxes.mean_views, params.labels.temperature
    if temperature == "learned":
        temperature = DEMO_TEMPERATURE
    return {
        "table2": Ablation(
            {
                "initial labels only": BIASED
                | {"fuse_labels.alpha": 1.0, "train.consistency": 0.0},
                "+ label update": BIASED | {"train.consistency": 0.0},
                "+ label update, debiasing": DIVIDED | {"train.consistency": 0.0},
                "+ label update, consistency": BIASED,
                "+ all: CCD": DIVIDED,
            },
            published={
                "initial labels only": 86.4,
                "+ label update": 88.7,
                "+ label update, debiasing": 89.4,
                "+ label update, consistency": 88.8,
                "+ all: CCD": 90.1,
            },
        ),
        "tables3to5": Ablation(
            {"without debiasing": BIASED, "with debiasing": DIVIDED}, per_class=True
        ),
        "figure3": Ablation(
            {
                "around the objects": _given(AROUND),
                "the objects' boxes": _given(EXACT),
                "class activation maps": {},
                "random": {"cam_boxes.views": "random", "cam_boxes.mean_views": 9.0},
                "grid": {"cam_boxes.views": "grid", "cam_boxes.mean_views": 9.0},
            },
            boxes=True,
        ),
        "windows": Ablation(
            {
                "class activation maps, five an image": {},
                "class activation maps, nine": {"cam_boxes.mean_views": 9.0},
                "nine windows of half the side": {
                    "cam_boxes.views": "windows",
                    "cam_boxes.mean_views": 9.0,
                },
                "nine tiles": {"cam_boxes.views": "grid", "cam_boxes.mean_views": 9.0},
            },
        ),
        "ambiguous": Ablation(
            {
                row: changes | {"world.lenders": True}
                for row, changes in {
                    "initial labels only": BIASED
                    | {"fuse_labels.alpha": 1.0, "train.consistency": 0.0},
                    "+ label update, consistency": BIASED,
                    "+ all: CCD": DIVIDED,
                }.items()
            },
        ),
        "figure6a": Ablation(
            _curve("cam_boxes.mean_views", [round(m * views, 2) for m in (0.4, 0.7, 1, 1.4, 1.8)]),
            axis="views an image, on average",
        ),
        "figure6b": Ablation(
            _curve("fuse_labels.alpha", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
            axis="weight of the initial label",
        ),
        "figure7": Ablation(
            _curve("cam_boxes.cam_threshold", [0.5, 0.7, 0.85, 0.95, 0.99]),
            axis="threshold of the class activation map",
        ),
        "heads": Ablation(
            {
                "by gradient": BY_GRADIENT,
                "fitted after the training": REFITTED,
                "… to squared labels": REFITTED | {"train.sharpness": 2.0},
                "fitted after the warm-up": BY_GRADIENT | {"warmup.head": "closed_form"},
                "… and after the training": REFITTED | {"warmup.head": "closed_form"},
                "fitted instead of the warm-up, and after the training": REFITTED | INSTEAD,
            },
        ),
        "rounds": Ablation(
            {
                "by gradient": BY_GRADIENT,
                "the head fitted at the end": REFITTED,
                "… as many epochs, one update": REFITTED
                | LAST_EPOCH
                | {"train.epochs": 2 * params.train.epochs},
                "… a second update": REFITTED | AGAIN,
            },
            classifier=REFITTED,
        ),
        "recipes": Ablation(
            {
                "paper": BY_GRADIENT if demo else changes_for(preset, "paper"),
                "recommended": recommended,
                "… the head by gradient": recommended | BY_GRADIENT,
                "… divided by the bias": recommended | DIVIDED,
                "… a second update": recommended | AGAIN,
            },
            classifier=recommended,
        ),
        "floor": Ablation(
            {
                "floor and division": DIVIDED,
                "floor": UNDIVIDED,
                "division": DIVIDED | {"labels.floor": 0.0},
                "neither": BIASED,
                "neither, to the power 1/2": BIASED | _sharpened(0.5),
                "neither, squared": BIASED | _sharpened(2.0),
                "floor, squared": UNDIVIDED | _sharpened(2.0),
            },
        ),
        "extensions": Ablation(
            _divided(
                {
                    "CCD": {},
                    "floor without division": UNDIVIDED,
                    "centred, not divided": UNDIVIDED | {"labels.centre": "class_mean"},
                    "centred and divided": {"labels.centre": "class_mean"},
                    "no floor": {"labels.floor": 0.0},
                    "half the temperature": {"labels.temperature": round(0.5 * temperature, 6)},
                    "twice the temperature": {"labels.temperature": round(2 * temperature, 6)},
                    "five prompts": {"class_text.templates": PROMPTS},
                    "a second update": LAST_EPOCH | AGAIN,
                    "as many epochs, one update": {"train.epochs": 2 * params.train.epochs}
                    | LAST_EPOCH,
                }
            ),
            classifier=DIVIDED | LAST_EPOCH,
        ),
    }


def changes_for(dataset: str, recipe: str) -> Changes:
    """What a recipe for a data set has otherwise than the recommended one."""
    ours, theirs = (flat(YAML(typ="safe").load(preset_of(dataset, r))) for r in (None, recipe))
    return {key: value for key, value in theirs.items() if value != ours[key]}


def flat(sections: Mapping[str, Any]) -> Changes:
    """Every parameter by its dotted key."""
    found: Changes = {}
    for name, content in sections.items():
        if isinstance(content, Mapping):
            found |= {f"{name}.{key}": value for key, value in content.items()}
        else:
            found[name] = content
    return found


def _divided(rows: dict[str, Changes]) -> dict[str, Changes]:
    """The same rows, divided by the bias where they do not say otherwise."""
    return {row: DIVIDED | changes for row, changes in rows.items()}


def _curve(key: str, values: list[float]) -> dict[str, Changes]:
    return {str(value): {key: value} for value in values}


def _sharpened(power: float) -> Changes:
    return {"warmup.sharpness": power, "train.sharpness": power}


def _given(boxes: str) -> Changes:
    return {"cam_boxes.views": "file", "cam_boxes.boxes": boxes}
