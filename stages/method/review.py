"""Which images somebody should look at first, to correct labels and cuts; not of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.method.cuts import logits_of
from stages.runtime.types import Floats, Integers


class Question(NamedTuple):
    """Of an image, by its row: why it is asked about, and the class that it is mostly about."""

    row: int
    why: str
    about: int


def questions(p: Floats, cuts: Floats, teacher: Floats, count: int) -> list[Question]:
    """The `count` images of most doubt, none twice: of each kind of doubt one, in turn.

    p: the student's calibrated probabilities, and teacher: the teacher's, (images, classes); cuts:
    (classes,). The kinds are: the student is *unsure*, near the cut of a class; the two *disagree*,
    where it does not call the teacher's first class; or the class is *rare*, one of the half that
    is expected on the fewest images, and it is likely there. Within a kind the classes take turns.
    """
    return take_turns([unsure(p, cuts), disagreement(p, cuts, teacher), rare(p)], count)


def take_turns(kinds: list[Iterator[Question]], count: int) -> list[Question]:
    """The next of each kind in turn, until there are `count`; no image twice."""
    asked: list[Question] = []
    seen: set[int] = set()
    waiting = list(kinds)
    while waiting and len(asked) < count:
        for kind in list(waiting):
            found = next((one for one in kind if one.row not in seen), None)
            if found is None:
                waiting.remove(kind)
            elif len(asked) < count:
                asked.append(found)
                seen.add(found.row)
    return asked


def unsure(p: Floats, cuts: Floats) -> Iterator[Question]:
    """The images by how near they are to the cut of a class, in logits, the rarest class first."""
    away = np.abs(logits_of(p) - logits_of(cuts))
    return in_turn("unsure", np.argsort(away, axis=0, kind="stable"), by_rarity(p))


def disagreement(p: Floats, cuts: Floats, teacher: Floats) -> Iterator[Question]:
    """The images whose first class by the teacher is not called, by how sure the teacher is."""
    rows = np.arange(len(p))
    first = teacher.argmax(axis=1)
    apart = p[rows, first] < cuts[first]
    for row in np.argsort(-teacher[rows, first], kind="stable"):
        if apart[row]:
            yield Question(int(row), "disagree", int(first[row]))


def surest(p: Floats) -> Iterator[Question]:
    """The images on which each class is likeliest."""
    return in_turn("sure", np.argsort(-p, axis=0, kind="stable"), np.arange(p.shape[1]))


def rare(p: Floats) -> Iterator[Question]:
    """The images on which a rare class is likeliest."""
    rarest = by_rarity(p)[: max(1, p.shape[1] // 2)]
    return in_turn("rare", np.argsort(-p, axis=0, kind="stable"), rarest)


def by_rarity(p: Floats) -> Integers:
    """The classes, that of the smallest expected number of images first."""
    return np.argsort(p.sum(axis=0), kind="stable")


def in_turn(why: str, order: Integers, classes: Integers) -> Iterator[Question]:
    """Each class's first image, then each one's second, and so on. order: (images, classes)."""
    for rows in order:
        for c in classes:
            yield Question(int(rows[c]), why, int(c))
