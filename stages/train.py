"""Stage `train`: the student learns the pseudo-labels, consistently, until the rule stops it (3.4).

Reads the index, the pseudo-labels and the warmed-up student with its optimiser. Writes
`data/classifier/`: the student that is the result, and the history. Resumes by epoch.
Where several heads are compared, `heads.csv` beside them has how unlikely each makes the labels of
images that were held out.

    python -m stages.train
"""

from __future__ import annotations

import pandas as pd
import torch

from stages.artifacts import (
    HEADS,
    PSEUDO_LABELS,
    STUDENT,
    STUDENT_FEATURES,
    STUDENT_INIT,
    TRAIN_HISTORY,
    WARMUP_HISTORY,
    WARMUP_OPTIMISER,
    WARMUP_STUDENT,
)
from stages.method.objective import Objective, sharpen
from stages.method.stopping import first_local_minimum, published_stop
from stages.models.backbones import BackboneConfig
from stages.models.frozen import first_features
from stages.models.student import StudentConfig, build_student, named_for_student
from stages.models.weights import Note, load_weights, save_weights
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.storage.index import is_usable, read_index, usable
from stages.storage.provenance import check_sums, write_sums
from stages.storage.tables import class_columns, class_values, read_csv, read_table, write_csv
from stages.training.choice import held_out, held_out_losses
from stages.training.head import fit_head
from stages.training.loop import Recipe, Trainer
from stages.training.state import History, Tensors, first_state, read_checkpoint

COLUMNS = ["epoch", "label_loss", "consistency_loss", "train_mAP", "exact_mAP", "kept"]


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    rows = usable(index, "train")
    labels, _ = read_table(PSEUDO_LABELS, digest)
    weights, config = load_weights(WARMUP_STUDENT, StudentConfig, digest)
    moments, _ = load_weights(WARMUP_OPTIMISER, Note, digest)
    if class_columns(PSEUDO_LABELS, labels) != list(config.classes):
        raise UserError(
            f"{PSEUDO_LABELS.path} and {WARMUP_STUDENT} differ in classes: run `dvc repro`"
        )
    soft = sharpen(class_values(PSEUDO_LABELS, labels), params.train.sharpness)
    held = held_out(len(rows), params.optimiser.held_out)
    if params.train.head == "likeliest" and not held.any():
        raise UserError(
            f"optimiser.held_out in params.yaml: {params.optimiser.held_out} of {len(rows)} "
            "training images is none to choose a head by: hold out more, or take another train.head"
        )
    learned = rows[~held].reset_index(drop=True)
    objective = Objective(torch.tensor(soft[~held]))
    recipe = Recipe(
        params.train.epochs,
        params.optimiser,
        params.seed,
        params.train.stop_positive,
        params.train.consistency,
        params.train.jitter,
    )
    check_sums(WARMUP_HISTORY.parent, WARMUP_HISTORY.name)
    warmed_up = read_csv(WARMUP_HISTORY)["exact_mAP"].tolist()
    state, best = first_state(weights, moments), None
    if recipe.epochs:
        student = build_student(config)
        student.load_state_dict(weights)
        for state in Trainer(job, student, learned, objective, recipe).states(moments):
            best = kept_epoch(params.train.stop, warmed_up, state.history)
            if best is not None:
                say(f"train: {params.train.stop} is reached; epoch {best + 1} is kept")
                break
        del student  # and its gradients
    history = pd.DataFrame(state.history, columns=COLUMNS)
    kept = len(history) if best is None else best + 1
    history["kept"] = (history["epoch"] == kept).astype(int)
    if best is not None:
        state = read_checkpoint(job, kept)
    weights = state.weights
    wanted = is_usable(index, "train").copy()
    wanted[wanted] = ~held

    def fitted(of: Tensors) -> Tensors:
        """The same weights with a head in closed form."""
        seen = first_features(STUDENT_FEATURES, STUDENT_INIT, of, config.size, wanted, digest)
        return fit_head(job.stage, config, of, learned, soft[~held], seen)

    if params.train.head == "closed_form" and job.rank == 0:
        weights = fitted(weights)
    (job.staging / HEADS).parent.mkdir(parents=True, exist_ok=True)
    if params.train.head == "likeliest" and job.rank == 0:
        first = named_for_student(*load_weights(STUDENT_INIT, BackboneConfig), config.classes)
        heads = {"trained": weights, "refitted": fitted(weights), "untrained": fitted(first)}
        judged = held_out_losses(job.stage, config, heads, rows[held], soft[held])
        name = judged["head"][judged["kept"].argmax()]
        say(f"train: the head `{name}` is kept, the likeliest of {held.sum()} images held out")
        weights = heads[name]
        write_csv(job.staging / HEADS, judged)
    save_weights(job.staging / STUDENT, weights, config.model_copy(update={"epoch": kept}))
    write_csv(job.staging / TRAIN_HISTORY, history)
    write_sums((job.staging / TRAIN_HISTORY).parent)


def kept_epoch(stop: str, warmed_up: list[float], history: History) -> int | None:
    """Where in `history` the epoch is that the rule keeps; None as long as it goes on.

    warmed_up: the mAP of the epochs before, counted as the published script does.
    """
    if stop == "first_local_minimum":
        return first_local_minimum([epoch["train_mAP"] for epoch in history])
    if stop == "published":
        stop_at = published_stop([*warmed_up, *(epoch["exact_mAP"] for epoch in history)])
        return None if stop_at is None else max(stop_at - len(warmed_up), 0)
    return None


if __name__ == "__main__":
    main("train", run, on_ranks=True)
