"""Stage `warmup`: the student learns the initial labels for a few epochs (section 3.4).

Reads the index, the initial labels and the first weights. Writes `data/warmup/`: the student, the
optimiser's state, with which `train` goes on, and the history. Resumes by epoch.

    python -m stages.warmup
"""

from __future__ import annotations

import pandas as pd
import torch

from stages.artifacts import (
    INITIAL_LABELS,
    STUDENT_FEATURES,
    STUDENT_INIT,
    WARMUP_HISTORY,
    WARMUP_OPTIMISER,
    WARMUP_STUDENT,
)
from stages.method.objective import Objective, sharpen
from stages.models.backbones import BackboneConfig
from stages.models.frozen import first_features
from stages.models.student import Student, StudentConfig, first_student, named_for_student
from stages.models.weights import Note, load_weights, save_weights
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.storage.index import is_usable, read_index, usable
from stages.storage.provenance import write_sums
from stages.storage.tables import class_columns, class_values, read_table, write_csv
from stages.training.choice import held_out
from stages.training.head import fit_head
from stages.training.loop import Recipe, Trainer
from stages.training.state import State, first_state

POSITIVE = 0.5  # a label at least this large counts as positive for the training mAP
COLUMNS = ["epoch", "label_loss", "consistency_loss", "train_mAP", "exact_mAP"]


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    rows = usable(index, "train")
    labels, _ = read_table(INITIAL_LABELS, digest)
    tensors, first = load_weights(STUDENT_INIT, BackboneConfig)
    how = {
        "batch_norm": params.student.batch_norm,
        "boost": params.student.boost,
        "head": params.student.head,
        "precision": params.student.precision,
        "size": params.student.input_size,
        "classes": class_columns(INITIAL_LABELS, labels),
        "index": digest,
    }
    config = StudentConfig.model_validate(first.model_dump() | how)
    fitted = params.warmup.head == "closed_form"

    soft = sharpen(class_values(INITIAL_LABELS, labels), params.warmup.sharpness)
    learned = ~held_out(len(rows), params.optimiser.held_out)
    rows, soft = rows[learned].reset_index(drop=True), soft[learned]
    objective = Objective(torch.tensor(soft))
    recipe = Recipe(params.warmup.epochs, params.optimiser, params.seed, POSITIVE)
    if fitted and not recipe.epochs:
        state = first_state(named_for_student(tensors, first, config.classes))
    else:
        torch.manual_seed(params.seed)  # of the head's first weights
        state = trained(job, first_student(tensors, first, config), rows, objective, recipe)
    weights, moments = state.weights, state.moments
    if fitted and job.rank == 0:
        where, wanted = (STUDENT_FEATURES, STUDENT_INIT), is_usable(index, "train").copy()
        wanted[wanted] = learned
        seen = first_features(*where, weights, config.size, wanted, digest)
        weights = fit_head(job.stage, config, weights, rows, soft, seen)
        of_others = (name for name in moments if not name.partition(".")[2].startswith("head."))
        moments = {name: moments[name] for name in of_others}
    save_weights(job.staging / WARMUP_STUDENT, weights, config)
    save_weights(job.staging / WARMUP_OPTIMISER, moments, Note(index=digest))
    history = pd.DataFrame(state.history, columns=COLUMNS)
    write_csv(job.staging / WARMUP_HISTORY, history)
    write_sums((job.staging / WARMUP_HISTORY).parent)


def trained(
    job: Job, student: Student, rows: pd.DataFrame, objective: Objective, recipe: Recipe
) -> State:
    """The state after the last epoch."""
    state = first_state(student.state_dict())
    for latest in Trainer(job, student, rows, objective, recipe).states(moments={}):
        state = latest
    return state


if __name__ == "__main__":
    main("warmup", run, on_ranks=True)
