"""Whether a run can have worked, without any label: what speaks against it, and what to do.

The bounds were set where runs that worked are far from them: in the demo world (three seeds) the
student orders 95 % of the pairs of training images as their pseudo-labels do, and calls each class
at times; there and on photographs (two recipes) it calls 1.3 to 2.3 classes an image, agrees with
the teacher on 71 % of the images or more, and no class is the teacher's first on more than 26 %. A
student after a few steps of training orders 58 % of the pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.method.cuts import SHOWN
from stages.method.debias import entropy
from stages.runtime.types import Booleans, Floats

FEW_CALLED = 0.1  # classes an image
LEAST_ORDERED = 0.75  # of the pairs of an image that shows a class and one that does not
LEAST_AGREEMENT = 0.25  # of images
UNSURE = 0.95  # of the entropy of a uniform guess
ALWAYS_FIRST = 0.9  # of images
NAMED = 8  # classes, at most, in one line


class Doubt(NamedTuple):
    """What speaks against a run, and what its user can do."""

    doubt: str
    remedy: str


class Run(NamedTuple):
    """Of the training images, (images, classes): the probabilities of teacher and student, the
    pseudo-labels, and what the student's cuts call.
    """

    teacher: Floats
    student: Floats
    labels: Floats
    called: Booleans


def doubts(run: Run, measured: Booleans, classes: list[str]) -> list[Doubt]:
    """What speaks against it.

    measured: (classes,), False where the bias was wanted and could not be measured.
    """
    return [
        *of_teacher(run.teacher, classes),
        *of_bias(measured, classes),
        *of_student(run, classes),
    ]


def of_teacher(p: Floats, classes: list[str]) -> list[Doubt]:
    """A teacher that cannot tell one class from another teaches nothing."""
    if len(classes) < 2:
        return []
    unsure = float(entropy(p).mean() / np.log(len(classes)))
    first = np.bincount(p.argmax(axis=1), minlength=len(classes)) / len(p)
    look = (
        "see that `teacher` in params.yaml is what you think, and that the names say what is seen"
    )
    if unsure > UNSURE:
        what = f"the teacher guesses: its entropy is {unsure:.0%} of a uniform guess's"
        return [Doubt(what, f"{look}; or lower labels.temperature")]
    if first.max() > ALWAYS_FIRST:
        name = classes[int(first.argmax())]
        what = f"the teacher puts {name} first on {first.max():.0%} of the training images"
        return [Doubt(what, f"if that is not so, {look}")]
    return []


def of_bias(measured: Booleans, classes: list[str]) -> list[Doubt]:
    """A bias that is taken from other classes is a guess."""
    unknown = [name for name, known in zip(classes, measured, strict=True) if not known]
    if len(unknown) <= len(classes) / 2:
        return []
    what = f"the bias of most classes could not be measured: {listed(unknown)}"
    remedy = "leave out the classes that your photographs do not show, or raise bias.entropy_limit"
    return [Doubt(what, remedy)]


def of_student(run: Run, classes: list[str]) -> list[Doubt]:
    """A student that says the same of every image, or nothing, has not learned."""
    train = "train it longer (optimiser.epoch_steps, train.epochs) or at another optimiser.lr"
    p, called = run.student, run.called
    if not np.ptp(p, axis=0).max(initial=0) > 1e-3:
        return [Doubt("the student says the same of every training image", train)]
    found = []
    if (share := ordered(p, run.labels)) < LEAST_ORDERED:
        what = f"the student orders {share:.0%} of the pairs of training images as their labels do"
        found.append(Doubt(f"{what}, where a guess orders half of them", train))
    if called.sum(axis=1).mean() < FEW_CALLED:
        what = f"the student calls {called.sum(axis=1).mean():.2f} classes an image"
        remedy = "see that the pseudo-labels reach a half (lower labels.temperature), or"
        found.append(Doubt(what, f"{remedy} {train}"))
    elif len(silent := np.flatnonzero(~called.any(axis=0))) > len(classes) / 2:
        what = (
            f"the student never calls most of the classes: {listed([classes[c] for c in silent])}"
        )
        found.append(Doubt(what, f"leave out what your photographs do not show, or {train}"))
    agreement = float((run.teacher.argmax(axis=1) == p.argmax(axis=1)).mean())
    if agreement < LEAST_AGREEMENT:
        what = f"teacher and student have the same first class on {agreement:.0%} of the images"
        found.append(Doubt(what, train))
    return found


def ordered(p: Floats, labels: Floats) -> float:
    """The share of pairs of an image that shows a class and one that does not, by their labels, of
    which the first is more probable: the area under the ROC curve, averaged over the classes; 1
    where no class has both kinds.
    """
    from sklearn.metrics import roc_auc_score

    shown = labels >= SHOWN
    both = np.flatnonzero(shown.any(axis=0) & ~shown.all(axis=0))
    return float(np.mean([roc_auc_score(shown[:, c], p[:, c]) for c in both])) if len(both) else 1.0


def listed(names: list[str]) -> str:
    """The first of them, and how many there are more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
