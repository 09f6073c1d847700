"""What the page shows above its samples: headline figures, and sections of charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import pandas as pd

from stages.method.metrics import Metrics
from stages.page import charts
from stages.runtime.types import Booleans, Floats

SCORERS = {"teacher": "teacher", "warmup": "after the warm-up", "student": "student"}


@dataclass(frozen=True)
class Evidence:
    """All that the page is made of: the pipeline's tables, and the figures of the evaluation."""

    index: pd.DataFrame
    answers: pd.DataFrame
    bias: pd.DataFrame
    ground_truth: pd.DataFrame
    global_scores: pd.DataFrame
    initial_labels: pd.DataFrame
    local_labels: pd.DataFrame
    pseudo_labels: pd.DataFrame
    predictions: pd.DataFrame
    cuts: pd.DataFrame
    cam_boxes: pd.DataFrame
    local_scores: pd.DataFrame
    metrics: Metrics
    doubts: pd.DataFrame
    ladder: pd.DataFrame
    per_class: pd.DataFrame
    precision_recall: pd.DataFrame
    training: pd.DataFrame

    @property
    def classes(self) -> list[str]:
        """Their names, in their order."""
        return list(self.bias["class"])


class Figure(NamedTuple):
    """A number with its name."""

    name: str
    value: str


class Drawing(NamedTuple):
    """A chart as SVG, and what it is, for who cannot see it."""

    alt: str
    svg: str


class Section(NamedTuple):
    """A title, a paragraph and charts; `id` is what can be linked to."""

    id: str
    title: str
    text: str
    drawings: list[Drawing]


class Counts(NamedTuple):
    """Usable images of each split, classes, and unusable images."""

    train: int
    test: int
    classes: int
    bad: int


def counts(of: Evidence) -> Counts:
    """What the page is about."""
    ok, split = of.index["status"] == "ok", of.index["split"]
    train, test = (int((ok & (split == name)).sum()) for name in ("train", "test"))
    return Counts(train, test, len(of.bias), int((~ok).sum()))


def headline(of: Evidence) -> list[Figure]:
    """The few figures on top of the page."""
    facts = of.metrics["diagnostics"]
    agreement = facts["teacher_student_top1_agreement"]
    figures = []
    if "mAP" in of.metrics:
        figures.append(Figure("mAP of the student", f"{of.metrics['mAP']:.1f}"))
    if "teacher_mAP" in of.metrics:
        figures.append(Figure("mAP of the teacher itself", f"{of.metrics['teacher_mAP']:.1f}"))
    return [
        *figures,
        Figure("local views an image", f"{facts['views_per_image']:.1f}"),
        Figure("positives an image, student", f"{facts['positives_per_image']['student']:.2f}"),
        Figure("teacher and student agree on top", f"{agreement:.0%}"),
    ]


def answered(of: Evidence) -> list[str]:
    """A sentence a split, of what people's answers say of the student's calls."""
    found = []
    for split, judged in of.metrics.get("answers", {}).items():
        told = cast(dict[str, float], judged)
        figures = [
            f"{name} {told[name]:.0f} % ({told[f'{name}_low']:.0f} to {told[f'{name}_high']:.0f})"
            for name in ("precision", "recall")
            if name in told
        ]
        seen = ", which the student has learned" if split == "train" else ""
        found.append(
            f"{told['answers']} answers of {told['images']} {split} images{seen}: "
            f"{', '.join(figures) or 'nothing that can be judged'}."
        )
    return found


def quality_sections(of: Evidence) -> list[Section]:
    """What only ground truth can tell; nothing without it."""
    sections = []
    ladder = of.ladder.dropna(subset=["mAP"])
    if len(ladder):
        sections.append(
            Section(
                "ladder",
                "The ladder",
                "How good each label is on the training images, and each classifier on the "
                "test images. Labels and classifiers are judged on different images.",
                [Drawing("Average precision of every label and classifier", charts.ladder(ladder))],
            )
        )
    if "mAP" in of.metrics:
        columns = {f"{key}_AP": name for key, name in SCORERS.items()}
        table = of.per_class.rename(columns=columns).melt(
            ["class"], list(columns.values()), var_name="scorer", value_name="AP"
        )
        curves = of.precision_recall
        curves = curves[curves["class"] == "all"].replace({"scorer": SCORERS})
        sections.append(
            Section(
                "per-class",
                "Each class",
                "Average precision on the test images, and precision over recall for all "
                "pairs of image and class. A class without a positive has no average precision.",
                [
                    Drawing(
                        "Average precision of each class",
                        charts.per_class(table.dropna(), list(SCORERS.values())),
                    ),
                    Drawing(
                        "Precision over recall",
                        charts.precision_recall(curves, list(SCORERS.values())),
                    ),
                ],
            )
        )
    return sections


def label_sections(of: Evidence) -> list[Section]:
    """What the labels and the training tell of themselves."""
    classes = of.classes
    train = of.initial_labels[["image_id"]]
    raw = train.merge(of.global_scores, on="image_id")[classes].to_numpy()
    initial, local, pseudo = (
        table[classes].to_numpy(np.float32)
        for table in (of.initial_labels, of.local_labels, of.pseudo_labels)
    )
    counted: dict[str, Booleans | Floats] = {
        "teacher's best guess": np.eye(len(classes))[raw.argmax(axis=1)],
        "initial labels from 0.5": initial >= 0.5,
        "pseudo-labels from 0.5": pseudo >= 0.5,
    }
    truth = train.merge(of.ground_truth, on="image_id")
    if len(truth):
        counted = {"ground truth": truth[classes].to_numpy() > 0, **counted}
    values = {"raw": raw, "initial": initial, "local": local, "pseudo": pseudo}
    sections = [
        Section(
            "bias",
            "The teacher's bias",
            "Mean probability of the teacher's best class, over the images it is sure of "
            "(the paper's Figure 2d; the dashed line is the mean). A pale bar could not be "
            "measured, and is the mean of the others.",
            [Drawing("The bias of each class", charts.bias(of.bias))],
        ),
        Section(
            "labels",
            "The labels",
            "How the positives are spread over the classes (the paper's Figure 10), and "
            "how often each label value occurs.",
            [
                Drawing(
                    "How positives are spread over the classes",
                    charts.label_counts(positive_shares(counted, classes), list(counted)),
                ),
                Drawing(
                    "How often each label value occurs",
                    charts.label_values(_histogram(values), list(values)),
                ),
            ],
        ),
    ]
    if len(of.training):
        sections.append(
            Section(
                "training",
                "Training",
                "Losses, and mean average precision of the training predictions against "
                "the labels trained on. The grey line is the label update, the dashed one "
                "the epoch that was kept.",
                [Drawing("Losses and average precision by epoch", charts.training(of.training))],
            )
        )
    return sections


def positive_shares(counted: Mapping[str, Booleans | Floats], classes: list[str]) -> pd.DataFrame:
    """How the positives (images, classes) of each source are spread over the classes."""
    parts = []
    for source, positive in counted.items():
        count = positive.sum(axis=0)
        share = count / max(count.sum(), 1)
        parts.append(pd.DataFrame({"class": classes, "source": source, "share": share}))
    return pd.concat(parts)


def _histogram(values: dict[str, Floats], bins: int = 20) -> pd.DataFrame:
    parts = []
    for source, labels in values.items():
        images, edges = np.histogram(labels, bins=bins, range=(0, 1))
        bars = {"source": source, "value": edges[:-1], "end": edges[1:], "images": images}
        parts.append(pd.DataFrame(bars))
    return pd.concat(parts)
