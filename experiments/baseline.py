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
from typing import Annotated

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
from experiments.results import Data, aligned, judged, read_data, write_result
from experiments.settings import Baseline, read_settings
from stages.artifacts import GLOBAL_SCORES, STUDENT_INIT
from stages.images.prefetch import load_global_views, split_batches
from stages.method.objective import Objective
from stages.models.backbones import BackboneConfig
from stages.models.device import device
from stages.models.student import Student, StudentConfig, build_student, set_first_weights
from stages.models.weights import load_weights, save_weights
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.runtime.types import Floats
from stages.storage.tables import class_columns, read_table
from stages.training.loop import Recipe, Trainer
from stages.training.state import State, first_state

POSITIVE = 0.5  # a label at least this large counts as positive for the training's mAP


def run(name: str, params: Params, job: Job) -> None:
    method, settings = METHODS[name], read_settings().baseline
    data = read_data()
    clip, _ = read_table(GLOBAL_SCORES, data.digest)
    data.must_be_of(class_columns(GLOBAL_SCORES, clip))
    known = aligned(data.truth, data.rows)
    if (method.knows != "clip" or method.told) and np.isnan(known).all():
        raise UserError(f"{name} needs labels of training images: see source.labels in params.yaml")
    scores = aligned(clip, data.rows)
    observed = observe(method, known, scores, settings, np.random.default_rng(params.seed))
    if method.told:
        rate = float(np.nanmean(np.nansum(known, axis=1)))
        settings = settings.model_copy(update={"expected": rate})
    student = first_of(params, data, settings.boost if method.boost else 1.0)
    objective = method.objective(torch.from_numpy(observed), settings, params.seed)
    result, _ = train_and_judge(job, params, data, student, objective)
    per_image = round(float((observed != 0).sum(axis=1).mean()), 3)
    told = {"knows": method.knows, "observed_per_image": per_image}
    write_result(job, name, {"method": name} | result | told)


def first_of(params: Params, data: Data, boost: float) -> Student:
    """A student of the pipeline's first weights."""
    tensors, first = load_weights(STUDENT_INIT, BackboneConfig)
    config = StudentConfig.model_validate(
        first.model_dump()
        | {
            "batch_norm": params.student.batch_norm,
            "boost": boost,
            "head": params.student.head,
            "precision": params.student.precision,
            "size": params.student.input_size,
            "classes": data.classes,
            "index": data.digest,
        }
    )
    torch.manual_seed(params.seed)
    student = build_student(config)
    set_first_weights(student, tensors, first)
    return student


def train_and_judge(
    job: Job, params: Params, data: Data, student: Student, objective: Objective
) -> tuple[dict[str, float], State]:
    """Train a student by `objective`; how good it is on held-out images.

    Also returns the training's last state.
    """
    judge_by = data.judged  # or refuse, before anything is trained
    state = trained(job, params, data, student, objective)
    weights = job.staging / "student.safetensors"
    save_weights(weights, state.weights, student.config)
    found = judged(judge_by, probabilities(weights, data.held_out))
    say(f"{job.stage}: mAP {found['mAP']}")
    return {"epochs": len(state.history)} | found, state


def trained(job: Job, params: Params, data: Data, student: Student, objective: Objective) -> State:
    """The state after the last of the pipeline's epochs."""
    epochs = params.warmup.epochs + params.train.epochs
    recipe = Recipe(epochs, params.optimiser, params.seed, POSITIVE)
    state = first_state(student.state_dict())
    for latest in Trainer(job, student, data.rows, objective, recipe).states(moments={}):
        state = latest
    return state


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
    student = Student.load(weights, device())
    size = student.config.size
    batches = split_batches(range(len(rows)), student.batch_size(size))
    scores = [student.scores(views) for views in load_global_views(rows, size, batches)]
    return torch.cat(scores).cpu().numpy()


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
