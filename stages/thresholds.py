"""Stage `thresholds`: from which probability on each class is called, without labels (our own).

Reads the index, the pseudo-labels, people's answers about training images and the classifier.
Writes `data/thresholds.parquet`: a line a class, with the scale and offset that make the student's
logits probabilities, and the cut; it belongs to that one classifier. Resumes by block.

    python -m stages.thresholds
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from stages.artifacts import (
    ANSWERS,
    PSEUDO_LABELS,
    STUDENT,
    STUDENT_FEATURES,
    STUDENT_INIT,
    THRESHOLDS,
)
from stages.method.cuts import cuts_of
from stages.models.frozen import scores_of_features
from stages.models.student import StudentConfig
from stages.models.weights import load_weights
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.storage.index import is_usable, read_index, usable
from stages.storage.provenance import Provenance, file_digest
from stages.storage.tables import class_columns, class_values, read_table, write_table
from stages.training.scores import scores_of


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    labels, _ = read_table(PSEUDO_LABELS, digest)
    weights, config = load_weights(STUDENT, StudentConfig, digest)
    classes = list(config.classes)
    if class_columns(PSEUDO_LABELS, labels) != classes:
        raise UserError(f"{PSEUDO_LABELS.path} and {STUDENT} differ in classes: run `dvc repro`")
    precision = params.thresholds.precision
    told, _ = read_table(ANSWERS, digest)
    if class_columns(ANSWERS, told) != classes:
        raise UserError(f"{ANSWERS.path} and {STUDENT} differ in classes: run `dvc repro`")
    answers = told.set_index("image_id").reindex(labels["image_id"]).to_numpy()
    stored, wanted = (STUDENT_FEATURES, STUDENT_INIT), is_usable(index, "train")
    p = scores_of_features(*stored, weights, config, wanted, digest)
    if p is None:
        p = scores_of(job, {"student": STUDENT}, usable(index, "train"), digest)["student"]
    wanted_precision = None if precision == "none" else precision
    cuts = cuts_of(p, class_values(PSEUDO_LABELS, labels), answers, wanted_precision)
    table = pd.DataFrame(
        {
            "class": classes,
            "scale": cuts.scale.astype(np.float32),
            "offset": cuts.offset.astype(np.float32),
            "threshold": cuts.threshold.astype(np.float32),
            "told_apart": cuts.told_apart,
        }
    )
    provenance: Provenance = {"index": digest, "student": file_digest(STUDENT)}
    write_table(THRESHOLDS, table, provenance, job.staging)
    if not cuts.told_apart.all():
        names = ", ".join(table.loc[~table["told_apart"], "class"])
        say(f"thresholds: warning: the student does not tell images with these apart: {names}")


if __name__ == "__main__":
    main("thresholds", run, on_ranks=True)
