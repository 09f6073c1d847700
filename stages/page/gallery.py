"""What the student says of photographs: a gallery to filter, and a line a class."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.images.decode import read_image
from stages.method.cuts import logits_of
from stages.method.evaluation import called_at, said_by
from stages.method.review import Question, disagreement, surest, take_turns, unsure
from stages.page.cards import Guess, picture
from stages.page.sections import Evidence
from stages.runtime.types import Booleans, Floats

NEAR = 0.5  # to a cut, in logits: the student is unsure
MUCH = 0.3  # that local views changed a label by
SIDE = 220  # of a picture, in pixels
# how an image can be of interest, and what the filter calls it
KINDS = {
    "unsure": "unsure: near a cut",
    "disagree": "teacher and student disagree",
    "changed": "changed most by local views",
    "nothing": "nothing called",
    "wrong": "wrong, where labels are known",
}


class Said(NamedTuple):
    """What is known of the images that can be shown, a row an image.

    rows: of the index. p: the student's calibrated probabilities, teacher: the teacher's, called:
    what reaches its cut; truth: 1, 0 or NaN where it is not known; change: what local views added
    to the labels, 0 of test images. All (images, classes).
    """

    rows: pd.DataFrame
    p: Floats
    teacher: Floats
    called: Booleans
    truth: Floats
    change: Floats
    cuts: Floats


class Shown(NamedTuple):
    """An image of the gallery.

    called: what the student calls. missed: what is on it besides, as far as is known. first: the
    teacher's first class. classes: all of these, for the filter; kinds: of `KINDS`.
    """

    image_id: str
    split: str
    photo: str
    called: list[Guess]
    missed: list[str]
    first: str
    classes: list[str]
    kinds: list[str]


class Line(NamedTuple):
    """What there is to say of a class as a whole."""

    name: str
    called: int
    cut: str
    told_apart: bool
    ap: str
    f1: str


def said_of_images(of: Evidence) -> Said:
    """Test images, or all where there are none, and the training images that labels changed on."""
    usable = of.index[of.index["status"] == "ok"].set_index("image_id", drop=False)
    classes = of.classes

    def aligned(table: pd.DataFrame) -> Floats:
        found: Floats = table.set_index("image_id").reindex(usable.index)[classes].to_numpy()
        return found

    p = said_by(aligned(of.predictions), of.cuts)
    labels, initial = aligned(of.pseudo_labels), aligned(of.initial_labels)
    return Said(
        usable,
        p,
        aligned(of.global_scores),
        called_at(p, of.cuts),
        aligned(of.ground_truth),
        changed(labels, initial, aligned(of.answers)),
        of.cuts["threshold"].to_numpy(np.float64),
    )


def changed(labels: Floats, initial: Floats, answers: Floats) -> Floats:
    """How far local views moved each label; 0 where there is none, or somebody's answer is it."""
    return np.where(np.isnan(answers), np.nan_to_num(np.abs(labels - initial)), 0)


def gallery(said: Said, classes: list[str], count: int) -> list[Shown]:
    """The surest image of each class; then `count` more, doubtful, wrong and sure ones; and a fifth
    as many training images, whose labels the local views changed most.
    """
    test = (said.rows["split"] == "test").to_numpy()
    pool = np.flatnonzero(test if test.any() else ~test)
    p, called, truth = said.p[pool], said.called[pool], said.truth[pool]
    wrong = np.nan_to_num(np.abs(p - truth)) * (called != (truth > 0))
    sure = list(islice(surest(p), len(classes)))
    kinds = [
        surest(p),
        unsure(p, said.cuts),
        disagreement(p, said.cuts, said.teacher[pool]),
        greatest("wrong", wrong),
    ]
    chosen = [one.row for one in [*sure, *take_turns(kinds, len(classes) + count)]]
    rows = [int(pool[row]) for row in dict.fromkeys(chosen)]
    changed = (one.row for one in greatest("changed", said.change) if one.row not in rows)
    return [shown(said, classes, row) for row in [*rows, *islice(changed, count // 5)]]


def greatest(why: str, values: Floats) -> Iterator[Question]:
    """The images with the greatest value of any class above 0, the greatest first."""
    best = values.max(axis=1)
    for row in np.argsort(-best, kind="stable"):
        if best[row] > 0:
            yield Question(int(row), why, int(values[row].argmax()))


def shown(said: Said, classes: list[str], row: int) -> Shown:
    """One image of the gallery."""
    image, p, called, truth = said.rows.iloc[row], said.p[row], said.called[row], said.truth[row]
    on = truth > 0
    names = [c for c in np.argsort(-p, kind="stable") if called[c]]
    first = int(said.teacher[row].argmax())
    known = ~np.isnan(truth)
    true_of_it = {
        "unsure": np.abs(logits_of(p) - logits_of(said.cuts)).min() < NEAR,
        "disagree": not called[first],
        "changed": said.change[row].max() >= MUCH,
        "nothing": not called.any(),
        "wrong": bool((called != on)[known].any()),
    }
    return Shown(
        image_id=str(image["image_id"]),
        split=str(image["split"]),
        photo=picture(read_image(str(image["path"]), str(image["sha256"])), SIDE),
        called=[Guess(classes[c], f"{p[c]:.2f}", bool(on[c])) for c in names],
        missed=[classes[c] for c in np.flatnonzero(on & ~called)],
        first=classes[first],
        classes=[classes[c] for c in np.flatnonzero(called | on)],
        kinds=[kind for kind, true in true_of_it.items() if true],
    )


def lines(said: Said, of: Evidence) -> list[Line]:
    """A line a class, the best by the student first; without labels, the most often called."""
    table = of.per_class.set_index("class").loc[of.classes]
    calls = said.called.sum(axis=0)
    order = np.lexsort((-calls, -table["student_AP"].fillna(-1).to_numpy()))
    cuts = of.cuts.set_index("class").loc[of.classes]

    def percent(value: float) -> str:
        return "" if np.isnan(value) else f"{value:.1f}"

    return [
        Line(
            name=of.classes[c],
            called=int(calls[c]),
            cut=f"{cuts['threshold'].iloc[c]:.2f}",
            told_apart=bool(cuts["told_apart"].iloc[c]),
            ap=percent(float(table["student_AP"].iloc[c])),
            f1=percent(float(table["student_F1"].iloc[c])),
        )
        for c in order
    ]
