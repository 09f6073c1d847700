"""One method of the paper's Table 1, trained on the pipeline's photographs and judged as CCD is.

    python -m experiments.baseline ll_r
    python -m experiments.table1                     all of them, by DVC, in a clone

Reads the index, the student's first weights, CLIP's scores, and, unlike any stage of the
pipeline but `evaluate`, the ground truth: methods that are given labels need it. Writes
`results/table1/METHOD.json`. Which labels are known is drawn by the seed. Resumes by epoch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from experiments.methods import METHODS, Method
from experiments.observed import (
    Observed,
    all_known,
    likeliest,
    likely,
    one_present,
    some_known,
    with_unlikely,
)
from experiments.results import aligned, judge, write_result
from experiments.settings import Baseline, read_settings
from stages import machine
from stages.artifacts import (
    GLOBAL_SCORES,
    GROUND_TRUTH,
    INDEX,
    STUDENT_INIT,
    class_columns,
    index_digest,
    read_table,
    usable,
)
from stages.epochs import State
from stages.errors import UserError
from stages.images.loading import batches_of, global_views
from stages.job import Job, declaration, main
from stages.method.average_precision import mean_average_precision, micro_average_precision
from stages.method.types import Floats
from stages.models.student import (
    activation_maps,
    build_student,
    fitting_batch,
    load_student,
    logits_of,
    start_from,
)
from stages.models.weights import load_weights, save_weights
from stages.params import Params
from stages.progress import say
from stages.training import Objective, Recipe, train_epochs

POSITIVE = 0.5  # a label at least this large counts as positive for the training's mAP


def run(name: str, params: Params, job: Job) -> None:
    method, settings = METHODS[name], read_settings().baseline
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    rows, held_out = usable(index, "train"), usable(index, "test")
    truth, _ = read_table(GROUND_TRUTH, digest)
    clip, _ = read_table(GLOBAL_SCORES, digest)
    if class_columns(GROUND_TRUTH, truth) != class_columns(GLOBAL_SCORES, clip):
        raise UserError(f"{GROUND_TRUTH.path} has other classes than the labels: run `dvc repro`")
    known = aligned(truth, rows)
    if method.knows != "clip" and np.isnan(known).all():
        raise UserError(f"{name} needs labels of training images: see source.labels in params.yaml")
    scores = aligned(clip, rows)
    observed = observe(method, known, scores, settings, np.random.default_rng(params.seed))
    boost = settings.boost if method.boost else 1.0
    objective = method.objective(torch.from_numpy(observed), settings, params.seed)
    result, _ = train_and_judge(job, params, rows, held_out, truth, objective, boost, digest)
    result |= {"knows": method.knows}
    result |= {"observed_per_image": round(float((observed != 0).sum(axis=1).mean()), 3)}
    write_result(job, name, {"method": name} | result)


def train_and_judge(
    job: Job,
    params: Params,
    rows: pd.DataFrame,
    held_out: pd.DataFrame,
    truth: pd.DataFrame,
    objective: Objective,
    boost: float,
    digest: str,
) -> tuple[dict[str, Any], State]:
    """Train a student from its first weights by `objective`; how good it is on held-out images.

    Also returns the training's last state.
    """
    judged = judge(truth, held_out)
    classes = class_columns(GROUND_TRUTH, truth)
    tensors, first = load_weights(STUDENT_INIT)
    note = first | {
        "batch_norm": params.student.batch_norm,
        "boost": boost,
        "head": params.student.head,
        "precision": params.student.precision,
        "size": params.student.input_size,
        "classes": classes,
        "index": digest,
    }
    torch.manual_seed(params.seed)
    student = build_student(note, len(classes))
    start_from(student, tensors, first, note)
    epochs = params.warmup.epochs + params.train.epochs
    recipe = Recipe(epochs, params.optimiser, 0.0, (), POSITIVE)
    labels = objective.labels.clamp(min=0).float().numpy()
    state = State(student.state_dict(), {}, [], {})
    for latest in train_epochs(
        job, student, note, rows, labels, recipe, {}, params.seed, objective
    ):
        state = latest
    weights = job.staging / "student.safetensors"
    save_weights(weights, state.weights, note)
    found = probabilities(weights, held_out)
    result = {
        "epochs": epochs,
        "mAP": round(100 * mean_average_precision(judged, found), 2),
        "micro_AP": round(100 * micro_average_precision(judged, found), 2),
    }
    say(f"{job.stage}: mAP {result['mAP']}")
    return result, state


def observe(
    method: Method,
    truth: Floats,
    scores: Floats,
    settings: Baseline,
    rng: np.random.Generator,
) -> Observed | Floats:
    """What the method is given to know of the training images' labels, from the truth or CLIP."""
    if method.knows == "all":
        return all_known(truth)
    if method.knows == "some":
        return some_known(truth, settings.share, rng)
    if method.knows == "one":
        return one_present(truth, rng)
    if settings.clip == "soft":
        return scores
    observed = (
        likeliest(scores, settings.count)
        if settings.clip == "top"
        else likely(scores, settings.threshold)
    )
    return with_unlikely(observed, scores, settings.unlikely) if method.absent else observed


def probabilities(weights: Path, rows: pd.DataFrame) -> Floats:
    """A trained student's probabilities for the index's `rows`: (images, classes)."""
    device = machine.device()
    student, note = load_student(weights, device)
    batch = fitting_batch(student, note, note["size"], device)
    views = global_views(rows, note["size"], batches_of(range(len(rows)), batch))
    logits = [logits_of(activation_maps(student, note, some, device)) for some in views]
    return torch.cat(logits).sigmoid().cpu().numpy()


def command(
    method: Annotated[str, typer.Argument(help="A key of experiments/methods.py.")],
) -> None:
    """Train and judge one method."""
    if method not in METHODS:
        raise typer.BadParameter(f"{method}: one of {', '.join(METHODS)}")
    declared_by = partial(
        declaration, "baseline", file=Path("experiments/dvc.yaml"), item={"method": method}
    )
    main(f"baseline-{method}", partial(run, method), declared_by=declared_by)


if __name__ == "__main__":
    typer.run(command)
