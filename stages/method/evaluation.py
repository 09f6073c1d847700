"""Section 4: labels and classifiers compared with the ground truth, as tables of figures.

Scores are label tables, by the rung of the ladder that they stand on; `judged` has the ground truth
by split: `image_id` and a column a class, 0, 1, or NaN where a pair is not judged.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve

from stages.method.average_precision import (
    average_precision,
    mean_average_precision,
    per_class_average_precision,
)
from stages.method.closed_form import Doubles
from stages.method.cuts import SHOWN, calibrated, calibration_error, f1_of_each
from stages.method.debias import entropy
from stages.method.metrics import Diagnostics, Judged, Metrics
from stages.method.verdict import Run
from stages.runtime.types import Booleans, Floats

Tables = dict[str, pd.DataFrame]

# the rungs of the ladder: key, split, what is judged
RUNGS = (
    ("initial", "train", "initial labels: CLIP on the whole image"),
    ("local", "train", "local labels: CLIP on the local views"),
    ("pseudo", "train", "pseudo-labels: both fused"),
    ("teacher", "test", "the teacher itself as the classifier"),
    ("warmup", "test", "the student after the warm-up"),
    ("student", "test", "the student: the result"),
)


def micro_average_precision(truth: Booleans | Floats, scores: Floats) -> float:
    """Average precision of all (image, class) pairs as one ranking; NaN without a positive."""
    return average_precision(truth.ravel(), scores.ravel())


def values_of(table: pd.DataFrame) -> Floats:
    """(images, classes) of a label table."""
    return table.drop(columns="image_id").to_numpy(np.float32)


def align(scores: pd.DataFrame, truth: pd.DataFrame) -> tuple[Floats, Floats]:
    """What is known (0, 1, or NaN) and the scores of those images, (images, classes) each."""
    of_images = scores.set_index("image_id").loc[truth["image_id"]]
    return values_of(truth), of_images.to_numpy(np.float32)


def ladder(scores: Tables, judged: Tables) -> pd.DataFrame:
    """A line a rung: mAP and micro-AP in percent, and how many images were judged."""
    lines = []
    for key, split, what in RUNGS:
        truth, values = align(scores[key], judged[split])
        lines.append(
            {
                "rung": key,
                "split": split,
                "mAP": round(100 * mean_average_precision(truth, values), 2),
                "micro_AP": round(100 * micro_average_precision(truth, values), 2),
                "images": len(truth),
                "what": what,
            }
        )
    return pd.DataFrame(lines)


def metrics(rungs: pd.DataFrame, judged: Tables, diagnosed: Diagnostics) -> Metrics:
    """The figures of the ladder that are defined, and the diagnostics."""
    of = rungs.set_index("rung")[["mAP", "micro_AP"]].astype(float)
    figures: Metrics = {"labelled_images": {split: len(truth) for split, truth in judged.items()}}
    if len(judged["test"]):
        of_test = {
            "mAP": float(of["mAP"]["student"]),
            "micro_AP": float(of["micro_AP"]["student"]),
            "teacher_mAP": float(of["mAP"]["teacher"]),
            "warmup_mAP": float(of["mAP"]["warmup"]),
        }
        figures |= cast(Metrics, {k: value for k, value in of_test.items() if not np.isnan(value)})
        absent = np.nansum(values_of(judged["test"]), axis=0) == 0
        figures["classes_without_a_positive"] = int(absent.sum())
    if len(judged["train"]):
        labels = of.loc[["initial", "local", "pseudo"]]
        figures["label_mAP"] = _defined(labels["mAP"])
        figures["label_micro_AP"] = _defined(labels["micro_AP"])
    figures["diagnostics"] = diagnosed
    return figures


class Called(NamedTuple):
    """What the student's cuts come to on test images: for the metrics, and class by class."""

    figures: Metrics
    per_class: pd.DataFrame


def said_by(p: Floats, cuts: pd.DataFrame) -> Doubles:
    """The student's probabilities (images, classes), calibrated by its cuts, a line a class."""
    return calibrated(p, *(cuts[of].to_numpy(np.float64) for of in ("scale", "offset")))


def called_at(probabilities: Doubles, cuts: pd.DataFrame) -> Booleans:
    """Which classes calibrated probabilities (images, classes) call."""
    calls: Booleans = probabilities >= cuts["threshold"].to_numpy()
    return calls


def called(student: pd.DataFrame, cuts: pd.DataFrame, truth: pd.DataFrame) -> Called:
    """The student's calls judged, at its cuts (a line a class) and at 1/2."""
    known, p = align(student, truth)
    probabilities = said_by(p, cuts)
    f1 = f1_of_each(known, called_at(probabilities, cuts))
    columns = {"threshold": cuts["threshold"].round(4), "student_F1": np.round(100 * f1, 2)}
    figures: Metrics = {}
    if not np.isnan(f1).all():
        half = f1_of_each(known, p >= SHOWN)
        figures["F1"] = round(100 * float(np.nanmean(f1)), 2)
        figures["F1_at_half"] = round(100 * float(np.nanmean(half)), 2)
        figures["calibration_error"] = round(100 * calibration_error(known, probabilities), 2)
        figures["calibration_error_as_trained"] = round(100 * calibration_error(known, p), 2)
    return Called(figures, pd.DataFrame(columns))


def of_answers(student: pd.DataFrame, cuts: pd.DataFrame, answers: Tables) -> Metrics:
    """The student's calls at its cuts, judged by what people answered, by split.

    Shares in percent with the ends of their interval of 95 % (Wilson 1927); of what nobody answered
    nothing is said.
    """
    said: dict[str, Judged] = {}
    for split, told in answers.items():
        if not len(told):
            continue
        known, p = align(student, told)
        there, judged = known > 0, ~np.isnan(known)
        calls = called_at(said_by(p, cuts), cuts) & judged
        right = int((calls & there).sum())
        counts = {"images": len(told), "answers": int(judged.sum())}
        shares = share("precision", right, int(calls.sum())) | share(
            "recall", right, int(there.sum())
        )
        said[split] = cast(Judged, counts | shares)
    return {"answers": said} if said else {}


def share(name: str, part: int, whole: int) -> dict[str, float]:
    """In percent, with the ends of its interval; nothing of nothing."""
    if not whole:
        return {}
    ends = binomtest(part, whole).proportion_ci(method="wilson")
    shares = {"": part / whole, "_low": ends.low, "_high": ends.high}
    return {f"{name}{end}": round(100 * float(value), 1) for end, value in shares.items()}


def _defined(figures: pd.Series) -> dict[str, float | None]:
    """By rung; JSON knows no NaN."""
    return {str(rung): None if np.isnan(v) else float(v) for rung, v in figures.items()}


def diagnostics(
    scores: Tables, run: Run, bias: pd.DataFrame, boxes: pd.DataFrame, doubts: int
) -> Diagnostics:
    """What can be said without any ground truth.

    run: of the usable training images. doubts: how much speaks against the run.
    """
    teacher, student = run.teacher, run.student
    counted = {"initial": values_of(scores["initial"]) >= SHOWN, "pseudo": run.labels >= SHOWN}
    positives = {
        key: float(values.sum(axis=1).mean())
        for key, values in {**counted, "student": run.called}.items()
    }
    unsure = entropy(teacher).mean() / max(np.log(teacher.shape[1]), 1e-9)
    agreement = (teacher.argmax(axis=1) == student.argmax(axis=1)).mean()
    return {
        "teacher_entropy": round(float(unsure), 4),
        "bias_least": round(float(bias["bias"].min()), 4),
        "bias_greatest": round(float(bias["bias"].max()), 4),
        "bias_not_measured": int((~bias["measured"]).sum()),
        "views_per_image": round(len(boxes) / len(student), 4),
        "positives_per_image": {key: round(value, 4) for key, value in positives.items()},
        "teacher_student_top1_agreement": round(float(agreement), 4),
        "doubts": doubts,
    }


def per_class(bias: pd.DataFrame, scores: Tables, judged: Tables) -> pd.DataFrame:
    """Average precision of each class on every rung; empty where it is not defined."""
    table = pd.DataFrame({"class": list(bias["class"]), "bias": bias["bias"].round(4)})
    for split, truth in judged.items():
        table[f"{split}_positives"] = np.nansum(values_of(truth), axis=0).astype(int)
    for key, split, _ in RUNGS:
        known, values = align(scores[key], judged[split])
        nothing = np.full(len(bias), np.nan)
        of_each = per_class_average_precision(known, values) if len(known) else nothing
        table[f"{key}_AP"] = np.round(100 * of_each, 2)
    return table


def precision_recall(scores: Tables, truth: pd.DataFrame, points: int = 50) -> pd.DataFrame:
    """Precision over recall on the test split: all pairs for each scorer, and each class's own."""
    curves = [pd.DataFrame(columns=["scorer", "class", "recall", "precision"])]
    for key in ("teacher", "warmup", "student"):
        known, values = align(scores[key], truth)
        columns = [("all", known.ravel(), values.ravel())]
        if key == "student":
            names = truth.columns.drop("image_id")
            columns += [(str(c), known[:, n], values[:, n]) for n, c in enumerate(names)]
        for name, t, s in columns:
            judged = ~np.isnan(t)
            if (t[judged] > 0).any():
                precision, recall, _ = precision_recall_curve(t[judged] > 0, s[judged])
                at = np.unique(np.linspace(0, len(recall) - 1, points).round().astype(int))[::-1]
                curve = {"recall": recall[at], "precision": precision[at]}
                table = pd.DataFrame({"scorer": key, "class": name} | curve).round(4)
                curves.append(table)
    return pd.concat(curves[1:] or curves, ignore_index=True)
