"""Stage `train`: the student learns the pseudo-labels, consistently, until the rule stops it (3.4).

Reads the index, the pseudo-labels and the warmed-up student with its optimiser. Writes
`data/classifier/`: the student that is the result, and the history. Resumes by epoch.

    python -m stages.train
"""

from __future__ import annotations

import pandas as pd

from stages.artifacts import (
    INDEX,
    PSEUDO_LABELS,
    STUDENT,
    TRAIN_HISTORY,
    WARMUP_HISTORY,
    WARMUP_OPTIMISER,
    WARMUP_STUDENT,
    class_columns,
    class_values,
    index_digest,
    read_table,
    usable,
)
from stages.epochs import History, State, state_of_epoch
from stages.errors import UserError
from stages.job import Job, main
from stages.method.stopping import first_local_minimum, published_stop
from stages.models.student import build_student
from stages.models.weights import load_weights, save_weights
from stages.params import Params
from stages.progress import say
from stages.training import Recipe, train_epochs

COLUMNS = ["epoch", "label_loss", "consistency_loss", "train_mAP", "exact_mAP", "kept"]


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    rows = usable(index, "train")
    table, _ = read_table(PSEUDO_LABELS, digest)
    weights, note = load_weights(WARMUP_STUDENT, digest)
    moments, _ = load_weights(WARMUP_OPTIMISER, digest)
    if class_columns(PSEUDO_LABELS, table) != note["classes"]:
        raise UserError(
            f"{PSEUDO_LABELS.path} and {WARMUP_STUDENT} differ in classes: run `dvc repro`"
        )
    student = build_student(note, len(note["classes"]))
    student.load_state_dict(weights)

    recipe = Recipe(
        params.train.epochs,
        params.optimiser,
        params.train.consistency,
        params.train.jitter,
        params.train.stop_positive,
        params.train.average,
    )
    warmed_up = pd.read_csv(WARMUP_HISTORY)["exact_mAP"].tolist()
    state, best = State(weights, moments, [], {}), None
    for state in train_epochs(
        job,
        student,
        note,
        rows,
        class_values(PSEUDO_LABELS, table),
        recipe,
        moments,
        params.seed,
    ):
        best = kept_epoch(params.train.stop, warmed_up, state.history)
        if best is not None:
            say(f"train: {params.train.stop} is reached; epoch {best + 1} is kept")
            break
    history = pd.DataFrame(state.history, columns=COLUMNS)
    kept = len(history) if best is None else best + 1
    history["kept"] = (history["epoch"] == kept).astype(int)
    if best is not None:
        state = state_of_epoch(job, kept)
    save_weights(job.staging / STUDENT, state.weights, note | {"epoch": kept})
    history.to_csv(job.staging / TRAIN_HISTORY, index=False, lineterminator="\n")


def kept_epoch(stop: str, warmed_up: list[float], history: History) -> int | None:
    """Where in `history` the epoch is that the rule keeps; None as long as it goes on.

    warmed_up: the mAP of the epochs before, counted as the published script does.
    """
    if stop == "first_local_minimum":
        return first_local_minimum([epoch["train_mAP"] for epoch in history])
    if stop == "published":
        found = published_stop([*warmed_up, *(epoch["exact_mAP"] for epoch in history)])
        return None if found is None else max(found - len(warmed_up), 0)
    return None


if __name__ == "__main__":
    main("train", run, on_ranks=True)
