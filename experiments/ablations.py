"""The paper's ablations: which parameters each row changes, and what was published.

Every row starts from the `params.yaml` that is committed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

Changes = dict[str, Any]


class Ablation(NamedTuple):
    """A table, or a curve over one parameter.

    rows: what each changes. axis: of a curve, whose rows are its values. boxes: needs the views of
    `experiments.object_boxes`. published: mAP on VOC 2012 by row. per_class: is of average
    precisions class by class.
    """

    title: str
    rows: dict[str, Changes]
    axis: str = ""
    boxes: bool = False
    published: dict[str, float] | None = None
    per_class: bool = False


def _curve(key: str, values: list[float], also: Changes | None = None) -> dict[str, Changes]:
    return {str(value): {key: value} | (also or {}) for value in values}


BIASED: Changes = {"bias.debias": False, "fuse_labels.debias": False}
AROUND, EXACT = "data/objects_around.csv", "data/objects_exact.csv"


def _given(boxes: str) -> Changes:
    return {"cam_boxes.views": "file", "cam_boxes.boxes": boxes}


ABLATIONS: dict[str, Ablation] = {
    "table2": Ablation(
        "What each module adds",
        {
            "initial labels only": BIASED | {"fuse_labels.alpha": 1.0, "train.consistency": 0.0},
            "+ label update": BIASED | {"train.consistency": 0.0},
            "+ label update, debiasing": {"train.consistency": 0.0},
            "+ label update, consistency": BIASED,
            "+ all: CCD": {},
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
        "Each class without and with debiasing",
        {"without debiasing": BIASED, "with debiasing": {}},
        per_class=True,
    ),
    "figure3": Ablation(
        "Where to look",
        {
            "around the objects": _given(AROUND),
            "the objects' boxes": _given(EXACT),
            "class activation maps": {},
            "random": {"cam_boxes.views": "random", "cam_boxes.mean_views": 9.0},
            "grid": {"cam_boxes.views": "grid", "cam_boxes.mean_views": 9.0},
        },
        boxes=True,
    ),
    "figure6a": Ablation(
        "How many views an image",
        _curve("cam_boxes.mean_views", [2.0, 3.5, 5.0, 7.0, 9.0]),
        axis="views an image, on average",
    ),
    "figure6b": Ablation(
        "The weight of the initial label",
        _curve("fuse_labels.alpha", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        axis="weight of the initial label",
    ),
    "figure7": Ablation(
        "How large the region of a map is",
        _curve("cam_boxes.cam_threshold", [0.5, 0.7, 0.85, 0.95, 0.99]),
        axis="threshold of the class activation map",
    ),
}
