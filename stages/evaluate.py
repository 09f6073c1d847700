"""Stage `evaluate`: how good the classifier is, and every label on the way to it (section 4).

Reads the classifier, the warmed-up student, every label table and, here alone, the ground truth.
Writes `data/predictions.parquet` (every usable image) and, small and kept in git,
`results/metrics.json`, `ladder.csv`, `per_class.csv`, `precision_recall.csv` and `training.csv`.
Without ground truth it says so, and reports what can be said without. Resumes by block.

    python -m stages.evaluate
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import precision_recall_curve
from torch import Tensor

from stages import machine
from stages.artifacts import (
    BIAS,
    CAM_BOXES,
    GLOBAL_SCORES,
    GROUND_TRUTH,
    INDEX,
    INITIAL_LABELS,
    LOCAL_LABELS,
    PREDICTIONS,
    PSEUDO_LABELS,
    RESULTS,
    STUDENT,
    TRAIN_HISTORY,
    WARMUP_HISTORY,
    WARMUP_STUDENT,
    class_columns,
    class_table,
    class_values,
    index_digest,
    read_table,
    usable,
    write_table,
)
from stages.errors import UserError
from stages.images.loading import batches_of, global_views
from stages.job import Job, main
from stages.method.average_precision import (
    mean_average_precision,
    micro_average_precision,
    per_class_average_precision,
)
from stages.method.debias import entropy
from stages.method.types import Floats
from stages.models.student import activation_maps, fitting_batch, load_student, logits_of
from stages.params import Params
from stages.progress import say
from stages.resume import Arrays, in_blocks

# the rungs of the ladder: key, split, what is judged
RUNGS = (
    ("initial", "train", "initial labels: CLIP on the whole image"),
    ("local", "train", "local labels: CLIP on the local views"),
    ("pseudo", "train", "pseudo-labels: both fused"),
    ("teacher", "test", "the teacher itself as the classifier"),
    ("warmup", "test", "the student after the warm-up"),
    ("student", "test", "the student: the result"),
)


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    rows = usable(index)
    teacher, _ = read_table(GLOBAL_SCORES, digest)
    classes = class_columns(GLOBAL_SCORES, teacher)
    tables = {
        "initial": read_table(INITIAL_LABELS, digest)[0],
        "local": read_table(LOCAL_LABELS, digest)[0],
        "pseudo": read_table(PSEUDO_LABELS, digest)[0],
        "teacher": teacher,
    } | predictions(job, rows, digest, classes)
    truth, _ = read_table(GROUND_TRUTH, digest)
    if class_columns(GROUND_TRUTH, truth) != classes:
        raise UserError(f"{GROUND_TRUTH.path} has other classes than the labels: run `dvc repro`")
    judged = {split: _labelled(rows, truth, split) for split in ("train", "test")}
    ladder = pd.DataFrame([_rung(*rung, tables, judged) for rung in RUNGS])
    boxes, _ = read_table(CAM_BOXES, digest)
    bias, _ = read_table(BIAS, digest)
    metrics = _metrics(ladder, judged) | {"diagnostics": diagnostics(tables, rows, bias, boxes)}

    write_table(PREDICTIONS, tables["student"], {"index": digest}, job.staging)
    results = job.staging / RESULTS
    results.mkdir(parents=True)
    (results / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    _csv(ladder, results / "ladder.csv")
    _csv(_per_class(classes, bias, tables, judged), results / "per_class.csv")
    _csv(_precision_recall(tables, judged["test"], classes), results / "precision_recall.csv")
    _csv(_training(), results / "training.csv")
    if "mAP" in metrics:
        say(f"evaluate: mAP {metrics['mAP']:.1f}, the teacher's own {metrics['teacher_mAP']:.1f}")
    else:
        say("evaluate: no labelled test images; results/metrics.json has what can be said without")


def predictions(
    job: Job, rows: pd.DataFrame, digest: str, classes: list[str]
) -> dict[str, pd.DataFrame]:
    """Label tables of the students' probabilities of every image in `rows`, each decoded once."""
    device = machine.device()
    students = {}
    for key, path in (("warmup", WARMUP_STUDENT), ("student", STUDENT)):
        students[key] = student, note = load_student(path, device, digest)
        if note["classes"] != classes:
            raise UserError(f"{path} has other classes than the labels: run `dvc repro`")
    size = note["size"]
    batch = fitting_batch(student, note, size, device)

    def look(blocks: list[range]) -> Iterator[Arrays]:
        views = global_views(
            rows, size, (part for block in blocks for part in batches_of(block, batch))
        )
        for block in blocks:
            found: dict[str, list[Tensor]] = {key: [] for key in students}
            for _ in batches_of(block, batch):
                some = next(views)
                for key, (student, note) in students.items():
                    logits = logits_of(activation_maps(student, note, some, device))
                    found[key].append(logits.sigmoid())
            yield {key: torch.cat(parts).cpu().numpy() for key, parts in found.items()}

    looked = in_blocks(job, len(rows), machine.block(device), "images", look)
    return {
        key: class_table(rows[["image_id"]], np.concatenate(list(looked.of(key))), classes)
        for key in students
    }


def _labelled(rows: pd.DataFrame, truth: pd.DataFrame, split: str) -> pd.DataFrame:
    """The ground truth of the usable images of a split, in the index's order."""
    ids = rows.loc[rows["split"] == split, ["image_id"]]
    return ids.merge(truth, on="image_id", how="inner")


def _aligned(table: pd.DataFrame, truth: pd.DataFrame) -> tuple[Floats, Floats]:
    """What is known (0, 1, or NaN) and the scores, (images, classes) each."""
    scores = table.set_index("image_id").loc[truth["image_id"]].to_numpy(np.float32)
    return class_values(GROUND_TRUTH, truth), scores


def _rung(
    key: str,
    split: str,
    what: str,
    tables: dict[str, pd.DataFrame],
    judged: dict[str, pd.DataFrame],
) -> dict[str, Any]:
    found, scores = _aligned(tables[key], judged[split])
    return {
        "rung": key,
        "split": split,
        "mAP": _percent(mean_average_precision(found, scores)),
        "micro_AP": _percent(micro_average_precision(found, scores)),
        "images": len(found),
        "what": what,
    }


def _metrics(ladder: pd.DataFrame, judged: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """The figures that `dvc metrics diff` compares; those without ground truth are left out."""
    of = ladder.set_index("rung")
    metrics: dict[str, Any] = {"labelled_images": {k: len(v) for k, v in judged.items()}}
    if len(judged["test"]):
        absent = np.nansum(class_values(GROUND_TRUTH, judged["test"]), axis=0) == 0
        metrics |= {
            "mAP": of.loc["student", "mAP"],
            "micro_AP": of.loc["student", "micro_AP"],
            "teacher_mAP": of.loc["teacher", "mAP"],
            "warmup_mAP": of.loc["warmup", "mAP"],
            "classes_without_a_positive": int(absent.sum()),
        }
    if len(judged["train"]):
        labels = of.loc[["initial", "local", "pseudo"]]
        metrics["label_mAP"] = labels["mAP"].to_dict()
        metrics["label_micro_AP"] = labels["micro_AP"].to_dict()
    defined: dict[str, Any] = json.loads(json.dumps(metrics), parse_constant=lambda _: None)
    return {key: value for key, value in defined.items() if value is not None}


def diagnostics(
    tables: dict[str, pd.DataFrame], rows: pd.DataFrame, bias: pd.DataFrame, boxes: pd.DataFrame
) -> dict[str, Any]:
    """What can be said of the labels and the student without any ground truth."""
    train = rows.loc[rows["split"] == "train", "image_id"]
    teacher = tables["teacher"].set_index("image_id").loc[train].to_numpy()
    student = tables["student"].set_index("image_id").loc[train].to_numpy()
    classes = teacher.shape[1]
    values = {key: class_values(INITIAL_LABELS, tables[key]) for key in ("initial", "pseudo")}
    values["student"] = student
    return {
        "teacher_entropy": _round(float(entropy(teacher).mean() / max(np.log(classes), 1e-9))),
        "bias_least": _round(float(bias["bias"].min())),
        "bias_greatest": _round(float(bias["bias"].max())),
        "bias_not_measured": int((~bias["measured"]).sum()),
        "views_per_image": _round(len(boxes) / len(train)),
        "positives_per_image": {
            k: _round(float((v >= 0.5).sum(axis=1).mean())) for k, v in values.items()
        },
        "teacher_student_top1_agreement": _round(
            float((teacher.argmax(axis=1) == student.argmax(axis=1)).mean())
        ),
    }


def _per_class(
    classes: list[str],
    bias: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    judged: dict[str, pd.DataFrame],
) -> pd.DataFrame:
    """Average precision of each class on every rung; empty where it is not defined."""
    table = pd.DataFrame({"class": classes, "bias": bias["bias"].round(4)})
    for split, truth in judged.items():
        positives = np.nansum(class_values(GROUND_TRUTH, truth), axis=0)
        table[f"{split}_positives"] = positives.astype(int)
    for key, split, _ in RUNGS:
        found, scores = _aligned(tables[key], judged[split])
        values = (
            per_class_average_precision(found, scores)
            if len(found)
            else np.full(len(classes), np.nan)
        )
        table[f"{key}_AP"] = np.round(100 * values, 2)
    return table


def _precision_recall(
    tables: dict[str, pd.DataFrame], truth: pd.DataFrame, classes: list[str], points: int = 50
) -> pd.DataFrame:
    """Precision over recall on the test split: all pairs for each scorer, and each class's own."""
    curves = []
    for key in ("teacher", "warmup", "student"):
        found, scores = _aligned(tables[key], truth)
        columns = [("all", found.ravel(), scores.ravel())]
        if key == "student":
            columns += [(name, found[:, c], scores[:, c]) for c, name in enumerate(classes)]
        for name, t, s in columns:
            judged = ~np.isnan(t)
            if (t[judged] > 0).any():
                precision, recall, _ = precision_recall_curve(t[judged] > 0, s[judged])
                at = np.unique(np.linspace(0, len(recall) - 1, points).round().astype(int))[::-1]
                curve = {
                    "scorer": key,
                    "class": name,
                    "recall": recall[at],
                    "precision": precision[at],
                }
                curves.append(pd.DataFrame(curve).round(4))
    empty = pd.DataFrame(columns=["scorer", "class", "recall", "precision"])
    return pd.concat(curves, ignore_index=True) if curves else empty


def _training() -> pd.DataFrame:
    """Both histories in one table, the epochs counted on."""
    warmup, train = pd.read_csv(WARMUP_HISTORY), pd.read_csv(TRAIN_HISTORY)
    warmup["stage"], train["stage"], warmup["kept"] = "warmup", "train", 0
    train["epoch"] += len(warmup)
    columns = ["epoch", "stage", "label_loss", "consistency_loss", "train_mAP", "exact_mAP", "kept"]
    parts = [part for part in (warmup, train) if len(part)]
    return pd.concat(parts)[columns].round(4) if parts else pd.DataFrame(columns=columns)


def _csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n")


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _round(value: float) -> float:
    return round(value, 4)


if __name__ == "__main__":
    main("evaluate", run, on_ranks=True)
