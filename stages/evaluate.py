"""Stage `evaluate`: how good the classifier is, and every label on the way to it (section 4).

Reads the classifier and its cuts, the warmed-up student, every label table, people's answers and,
here alone, the ground truth. Writes `data/predictions.parquet` (every usable image's probabilities,
as the student says them), `data/doubts.csv` (what speaks against the run) and, small and kept in
git, `results/metrics.json`, `ladder.csv`, `per_class.csv`, `precision_recall.csv` and
`training.csv`. Without ground truth it says so, and reports what can be said without. Resumes by
block.

    python -m stages.evaluate
"""

from __future__ import annotations

import json

import pandas as pd

from stages.artifacts import (
    ANSWERS,
    BIAS,
    CAM_BOXES,
    DOUBTS,
    GLOBAL_SCORES,
    GROUND_TRUTH,
    INITIAL_LABELS,
    LOCAL_LABELS,
    PREDICTIONS,
    PSEUDO_LABELS,
    RESULTS,
    STUDENT,
    STUDENT_FEATURES,
    STUDENT_INIT,
    THRESHOLDS,
    TRAIN_HISTORY,
    WARMUP_HISTORY,
    WARMUP_STUDENT,
)
from stages.method import evaluation, verdict
from stages.models.frozen import scores_of_features
from stages.models.student import StudentConfig
from stages.models.weights import load_weights
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.runtime.types import Floats
from stages.storage.index import is_usable, read_index, usable
from stages.storage.provenance import Provenance, check_sums, file_digest
from stages.storage.tables import (
    class_columns,
    class_table,
    read_csv,
    read_table,
    write_csv,
    write_table,
)
from stages.training.scores import scores_of

STUDENTS = {"warmup": WARMUP_STUDENT, "student": STUDENT}


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    rows = usable(index)
    teacher, _ = read_table(GLOBAL_SCORES, digest)
    classes = class_columns(GLOBAL_SCORES, teacher)
    scores = {
        "initial": read_table(INITIAL_LABELS, digest)[0],
        "local": read_table(LOCAL_LABELS, digest)[0],
        "pseudo": read_table(PSEUDO_LABELS, digest)[0],
        "teacher": teacher,
    } | predictions(job, index, digest, classes)
    truth, _ = read_table(GROUND_TRUTH, digest)
    told, _ = read_table(ANSWERS, digest)
    for known, frame in ((GROUND_TRUTH, truth), (ANSWERS, told)):
        if class_columns(known, frame) != classes:
            raise UserError(f"{known.path} has other classes than the labels: run `dvc repro`")
    judged = {split: labelled(rows, truth, split) for split in ("train", "test")}
    boxes, _ = read_table(CAM_BOXES, digest)
    bias, _ = read_table(BIAS, digest)
    train = rows.loc[rows["split"] == "train", "image_id"]
    ladder = evaluation.ladder(scores, judged)
    cuts, of_cuts = read_table(THRESHOLDS, digest)
    if of_cuts["student"] != file_digest(STUDENT) or list(cuts["class"]) != classes:
        raise UserError(f"{THRESHOLDS.path} is of another classifier: run `dvc repro`")
    of_train = {key: values_of_images(scores[key], train) for key in ("teacher", "student")}
    calls = evaluation.called_at(evaluation.said_by(of_train["student"], cuts), cuts)
    labels = values_of_images(scores["pseudo"], train)
    of_run = verdict.Run(**of_train, labels=labels, called=calls)
    divided = params.bias.debias or params.fuse_labels.debias
    doubts = verdict.doubts(of_run, bias["measured"].to_numpy() | (not divided), classes)
    diagnosed = evaluation.diagnostics(scores, of_run, bias, boxes, len(doubts))
    called = evaluation.called(scores["student"], cuts, judged["test"])
    answers = {split: labelled(rows, told, split) for split in ("train", "test")}
    metrics = evaluation.metrics(ladder, judged, diagnosed) | called.figures
    metrics |= evaluation.of_answers(scores["student"], cuts, answers)

    results = job.staging / RESULTS
    results.mkdir(parents=True)
    (results / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
    for name, table in {
        "ladder": ladder,
        "per_class": evaluation.per_class(bias, scores, judged).join(called.per_class),
        "precision_recall": evaluation.precision_recall(scores, judged["test"]),
        "training": training_history(),
    }.items():
        write_csv(results / f"{name}.csv", table)
    of_doubts = job.staging / DOUBTS
    of_doubts.parent.mkdir(parents=True, exist_ok=True)
    write_csv(of_doubts, pd.DataFrame(doubts, columns=verdict.Doubt._fields))
    written = [of_doubts, *sorted(results.iterdir())]
    of_results: Provenance = {
        "index": digest,
        "student": file_digest(STUDENT),
        "files": {f.name: file_digest(f) for f in written},
    }
    write_table(PREDICTIONS, scores["student"], of_results, job.staging)
    if "mAP" in metrics:
        say(f"evaluate: mAP {metrics['mAP']:.1f}, the teacher's own {metrics['teacher_mAP']:.1f}")
    else:
        why = "no labelled test images"
        if len(judged["test"]):
            why = "no class is on some of the labelled test images and not on others"
        say(f"evaluate: {why}; results/metrics.json has what can be said without")
    for doubt in doubts:
        say(f"evaluate: warning: {doubt.doubt}: {doubt.remedy}")


def predictions(
    job: Job, index: pd.DataFrame, digest: str, classes: list[str]
) -> dict[str, pd.DataFrame]:
    """Label tables of the students' probabilities of every usable image.

    Where both students are heads on the first weights' features, no image is looked at again.
    """
    said = {}
    for key, path in STUDENTS.items():
        weights, config = load_weights(path, StudentConfig, digest)
        if list(config.classes) != classes:
            raise UserError(f"{path} has other classes than the labels: run `dvc repro`")
        where, wanted = (STUDENT_FEATURES, STUDENT_INIT), is_usable(index)
        p = scores_of_features(*where, weights, config, wanted, digest)
        if p is not None:
            said[key] = p
    rows = usable(index)
    if len(said) < len(STUDENTS):
        said = scores_of(job, STUDENTS, rows, digest)
    return {key: class_table(rows[["image_id"]], p, classes) for key, p in said.items()}


def values_of_images(table: pd.DataFrame, ids: pd.Series) -> Floats:
    """(images, classes) of a label table, of these images in this order."""
    values: Floats = table.set_index("image_id").loc[ids].to_numpy()
    return values


def labelled(rows: pd.DataFrame, truth: pd.DataFrame, split: str) -> pd.DataFrame:
    """The ground truth of the usable images of a split, in the index's order."""
    ids = rows.loc[rows["split"] == split, ["image_id"]]
    return ids.merge(truth, on="image_id", how="inner")


def training_history() -> pd.DataFrame:
    """Both histories in one table, the epochs counted on."""
    for path in (WARMUP_HISTORY, TRAIN_HISTORY):
        check_sums(path.parent, path.name)
    warmup, train = read_csv(WARMUP_HISTORY), read_csv(TRAIN_HISTORY)
    warmup["stage"], train["stage"], warmup["kept"] = "warmup", "train", 0
    train["epoch"] += len(warmup)
    columns = ["epoch", "stage", "label_loss", "consistency_loss", "train_mAP", "exact_mAP", "kept"]
    parts = [part for part in (warmup, train) if len(part)]
    return pd.concat(parts)[columns].round(4) if parts else pd.DataFrame(columns=columns)


if __name__ == "__main__":
    main("evaluate", run, on_ranks=True)
