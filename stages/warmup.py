"""Stage `warmup`: the student learns the initial labels for a few epochs (section 3.4).

Reads the index, the initial labels and the first weights. Writes `data/warmup/`: the student, the
optimiser's state, with which `train` goes on, and the history. Resumes by epoch.

    python -m stages.warmup
"""

from __future__ import annotations

import pandas as pd
import torch

from stages.artifacts import (
    INDEX,
    INITIAL_LABELS,
    STUDENT_INIT,
    WARMUP_HISTORY,
    WARMUP_OPTIMISER,
    WARMUP_STUDENT,
    class_columns,
    class_values,
    index_digest,
    read_table,
    usable,
)
from stages.epochs import State
from stages.job import Job, main
from stages.models.student import build_student, start_from
from stages.models.weights import load_weights, save_weights
from stages.params import Params
from stages.training import Recipe, train_epochs

POSITIVE = 0.5  # a label at least this large counts as positive for the training mAP
COLUMNS = ["epoch", "label_loss", "consistency_loss", "train_mAP", "exact_mAP"]


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    rows = usable(index, "train")
    table, _ = read_table(INITIAL_LABELS, digest)
    classes = class_columns(INITIAL_LABELS, table)
    tensors, first = load_weights(STUDENT_INIT)
    note = first | {
        "batch_norm": params.student.batch_norm,
        "boost": params.student.boost,
        "head": params.student.head,
        "precision": params.student.precision,
        "size": params.student.input_size,
        "classes": classes,
        "index": digest,
    }
    torch.manual_seed(params.seed)
    student = build_student(note, len(classes))
    start_from(student, tensors, first, note)

    state = State(student.state_dict(), {}, [], {})
    for latest in train_epochs(
        job,
        student,
        note,
        rows,
        class_values(INITIAL_LABELS, table),
        Recipe(params.warmup.epochs, params.optimiser, 0.0, (), POSITIVE),
        {},
        params.seed,
    ):
        state = latest
    save_weights(job.staging / WARMUP_STUDENT, state.weights, note)
    save_weights(job.staging / WARMUP_OPTIMISER, state.moments, {"index": digest})
    history = pd.DataFrame(state.history, columns=COLUMNS)
    history.to_csv(job.staging / WARMUP_HISTORY, index=False, lineterminator="\n")


if __name__ == "__main__":
    main("warmup", run, on_ranks=True)
