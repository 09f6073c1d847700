"""What `results/metrics.json` holds: the figures that `dvc metrics diff` compares."""

from __future__ import annotations

from typing import TypedDict


class Diagnostics(TypedDict):
    """What can be said of the labels and the student without any ground truth."""

    teacher_entropy: float
    bias_least: float
    bias_greatest: float
    bias_not_measured: int
    views_per_image: float
    positives_per_image: dict[str, float]
    teacher_student_top1_agreement: float
    doubts: int  # what speaks against the run; data/doubts.csv says it


class Judged(TypedDict, total=False):
    """The student's calls, judged by people's answers about some images.

    precision, recall: in percent, with the ends of their interval of 95 %; left out of nothing.
    """

    images: int
    answers: int
    precision: float
    precision_low: float
    precision_high: float
    recall: float
    recall_low: float
    recall_high: float


class Metrics(TypedDict, total=False):
    """In percent; what there is no ground truth for is left out."""

    labelled_images: dict[str, int]
    mAP: float  # the field's name
    micro_AP: float
    teacher_mAP: float
    warmup_mAP: float
    classes_without_a_positive: int
    F1: float  # mean over the classes, of the student's calls at its cuts
    F1_at_half: float  # at 1/2 of its probabilities as they are
    calibration_error: float  # of its calibrated probabilities, test images
    calibration_error_as_trained: float
    answers: dict[str, Judged]  # by split
    label_mAP: dict[str, float | None]
    label_micro_AP: dict[str, float | None]
    diagnostics: Diagnostics
