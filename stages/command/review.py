"""`ccd review`: which images somebody should look at, for a spreadsheet or a labelling tool.

Answers come back by `source.answers` in `params.yaml` (`stages/sources/answer_table.py`).
"""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.artifacts import ANSWERS, GLOBAL_SCORES, PREDICTIONS, STUDENT, THRESHOLDS
from stages.method.cuts import calibrated
from stages.method.review import Question, questions
from stages.runtime.errors import UserError
from stages.runtime.params_file import PARAMS_FILE, parse_params, read_yaml
from stages.storage.index import read_index, usable
from stages.storage.provenance import file_digest
from stages.storage.tables import class_columns, class_values, read_table


class Wish(NamedTuple):
    """How many images are asked about, of which split (or `all`), and whether just any of them."""

    images: int
    split: str
    anything: bool


class Asked(NamedTuple):
    """An image somebody should look at.

    place: below `source.root`. why: the kind of doubt, and about: its class. says: what the student
    calls, with its probabilities, the likeliest first. sure: how sure it is of its least sure
    class, a half to one.
    """

    image_id: str
    path: str
    place: str
    width: int
    height: int
    why: str
    about: str
    says: dict[str, float]
    sure: float


class Review(NamedTuple):
    """What is asked, the most doubtful first; the class names; a name for the student."""

    asked: list[Asked]
    classes: list[str]
    student: str


def review(wish: Wish) -> Review:
    """What somebody should look at; nothing that was answered already.

    Raises `UserError` where the last run is not there, or nothing is left.
    """
    root = parse_params(read_yaml(PARAMS_FILE)).source.root
    index, digest = read_index()
    said, of_said = read_table(PREDICTIONS, digest)
    cuts, of_cuts = read_table(THRESHOLDS, digest)
    teacher, _ = read_table(GLOBAL_SCORES, digest)
    answered, _ = read_table(ANSWERS, digest)
    classes = class_columns(PREDICTIONS, said)
    for table, note in ((THRESHOLDS, of_cuts), (PREDICTIONS, of_said)):
        if list(cuts["class"]) != classes or note.get("student") != file_digest(STUDENT):
            raise UserError(f"{table.path} is of another classifier: run `dvc repro`")
    rows = usable(index, None if wish.split == "all" else wish.split)
    if rows.empty:
        raise UserError(f"there is no image in the split {wish.split}: --split says of which")
    rows = rows[~rows["image_id"].isin(answered["image_id"])].reset_index(drop=True)
    if rows.empty:
        of_split = "" if wish.split == "all" else f" in the split {wish.split}"
        raise UserError(f"there is no image{of_split} that was not answered already")
    raw = class_values(PREDICTIONS, said.set_index("image_id").loc[rows["image_id"]].reset_index())
    p = calibrated(raw, cuts["scale"].to_numpy(np.float64), cuts["offset"].to_numpy(np.float64))
    threshold = cuts["threshold"].to_numpy(np.float64)
    if wish.anything:
        some = np.random.default_rng(0).permutation(len(rows))[: wish.images]
        chosen = [Question(int(row), "any", int(p[row].argmax())) for row in some]
    else:
        ids = teacher.set_index("image_id").loc[rows["image_id"]].reset_index()
        chosen = questions(p, threshold, class_values(GLOBAL_SCORES, ids), wish.images)
    asked = [
        asked_of(rows.iloc[one.row], one, pd.Series(p[one.row], classes), threshold, root)
        for one in chosen
    ]
    return Review(asked, classes, f"ccd {of_cuts['student'][:12]}")


def asked_of(
    image: pd.Series, question: Question, p: pd.Series, cuts: np.ndarray, root: str
) -> Asked:
    """One image of the index. p: of each class, by its name; cuts: (classes,)."""
    called = p[p.to_numpy() >= cuts].sort_values(ascending=False, kind="stable")
    return Asked(
        str(image["image_id"]),
        str(image["path"]),
        os.path.relpath(image["path"], root),
        int(image["width"]),
        int(image["height"]),
        question.why,
        str(p.index[question.about]),
        {str(name): round(float(value), 4) for name, value in called.items()},
        round(float(np.maximum(p, 1 - p).min()), 4),
    )
