"""A run that cannot have worked is called so, and one that worked is not."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stages.artifacts import RESULTS
from stages.method.cuts import calibrated, cuts_of
from stages.method.verdict import Doubt, Run, doubts, ordered
from tests.conftest import ROOT, Project

CLASSES = ["cat", "dog", "cow", "horse"]
IMAGES = 400


def sound(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A teacher and a student that mostly see the same, and biases that were measured."""
    rng = np.random.default_rng(seed)
    shown = rng.integers(0, len(CLASSES), IMAGES)
    logits = rng.normal(size=(IMAGES, len(CLASSES))) + 4 * np.eye(len(CLASSES))[shown]
    teacher = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    student = 1 / (1 + np.exp(2 - logits - rng.normal(0, 0.5, logits.shape)))
    return teacher.astype(np.float32), student.astype(np.float32), np.ones(len(CLASSES), bool)


def doubted(
    teacher: np.ndarray,
    student: np.ndarray,
    measured: np.ndarray,
    labels: np.ndarray | None = None,
    classes: list[str] = CLASSES,
) -> list[Doubt]:
    """The doubts of a run whose pseudo-labels are the teacher's, if not given."""
    labels = teacher if labels is None else labels
    cuts = cuts_of(student, labels)
    called = calibrated(student, cuts.scale, cuts.offset) >= cuts.threshold
    return doubts(Run(teacher, student, labels, called), measured, classes)


def said(*run: np.ndarray) -> list[str]:
    return [each.doubt for each in doubted(*run)]


def test_nothing_speaks_against_a_sound_run():
    assert all(said(*sound(seed)) == [] for seed in range(20))


def test_nothing_speaks_against_the_run_that_is_committed():
    facts = json.loads((ROOT / RESULTS / "metrics.json").read_text())["diagnostics"]
    assert facts["doubts"] == 0
    assert facts["positives_per_image"]["student"] > 0.5


def test_a_teacher_that_guesses_is_named():
    teacher, student, measured = sound()
    flat = np.full_like(teacher, 0.25) + teacher / 1e4
    assert said(flat, student, measured)[0].startswith("the teacher guesses")


def test_a_teacher_that_sees_one_class_everywhere_is_named():
    teacher, student, measured = sound()
    teacher = np.sort(teacher, axis=1)
    assert said(teacher, student, measured)[0] == (
        "the teacher puts horse first on 100% of the training images"
    )


@pytest.mark.parametrize(("unknown", "doubted"), [(2, False), (3, True)])
def test_a_bias_that_could_not_be_measured_of_most_classes_is_named(unknown: int, doubted: bool):
    teacher, student, measured = sound()
    measured[:unknown] = False
    assert said(teacher, student, measured) == (
        ["the bias of most classes could not be measured: cat, dog, cow"] if doubted else []
    )


def test_a_student_that_says_the_same_of_every_image_is_named():
    teacher, student, measured = sound()
    same = np.repeat(student[:1], IMAGES, axis=0)
    assert said(teacher, same, measured) == ["the student says the same of every training image"]


def test_a_student_is_judged_at_its_cuts_and_not_at_a_half():
    teacher, student, measured = sound()
    assert (student / 3 < 0.5).all()
    assert said(teacher, student / 3, measured) == []


def test_a_student_whose_labels_reach_no_half_calls_nothing_and_is_named():
    teacher, student, measured = sound()
    (doubt,) = said(teacher, student / 3, measured, teacher / 2.1)
    assert doubt.startswith("the student calls 0.00 classes an image")


def test_a_student_that_never_calls_most_classes_is_named():
    teacher, student, measured = sound()
    labels = teacher.copy()
    labels[:, 1:] /= 2.1
    student[:, 1:] /= 3
    (doubt,) = said(teacher, student, measured, labels)
    assert "never calls most of the classes: dog, cow, horse" in doubt


@pytest.mark.parametrize(("learned", "doubt"), [(0.02, True), (0.5, False)])
def test_a_student_that_has_hardly_learned_is_named(learned: float, doubt: bool):
    teacher, student, measured = sound()
    noise = np.random.default_rng(1).random(student.shape, np.float32)
    found = said(teacher, learned * student + (1 - learned) * noise, measured)
    assert any(each.startswith("the student orders") for each in found) == doubt


@given(
    arrays.arrays(np.float32, (9, 2), elements=st.sampled_from([0.1, 0.2, 0.3])),
    arrays.arrays(np.float32, (9, 2), elements=st.sampled_from([0, 0.5, 1])),
)
def test_the_share_of_pairs_in_order_is_counted_pair_by_pair(p: np.ndarray, labels: np.ndarray):
    of_class = []
    for scores, shown in zip(p.T, labels.T >= 0.5, strict=True):
        pairs = [(x > y) + 0.5 * (x == y) for x in scores[shown] for y in scores[~shown]]
        if pairs:
            of_class.append(np.mean(pairs))
    assert ordered(p, labels) == pytest.approx(np.mean(of_class) if of_class else 1)


def test_a_student_that_disagrees_with_its_teacher_is_named():
    teacher, student, measured = sound()
    labels = np.roll(teacher, 1, axis=1)
    (doubt,) = said(teacher, np.roll(student, 1, axis=1), measured, labels)
    assert "the same first class on" in doubt


def test_one_class_needs_no_other_to_compare_with():
    _, student, measured = sound()
    teacher = student[:, :1]
    assert doubted(np.ones((IMAGES, 1)), teacher, measured[:1], teacher, ["cat"]) == []


def test_a_run_with_a_senseless_teacher_is_called_so_wherever_one_looks(project: Project):
    project.set(labels__temperature=100.0)
    project.repro()
    found = pd.read_csv(project / "data/doubts.csv")
    facts = json.loads((project / RESULTS / "metrics.json").read_text())["diagnostics"]
    assert len(found) == facts["doubts"]
    assert found["doubt"][0] == "the teacher guesses: its entropy is 100% of a uniform guess's"
    done = project.run("ccd", "check", check=False)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == len(found)
    for shown in (project.run("ccd", "ladder").stdout, done.stdout):
        assert all(f"Doubt: {doubt}" in shown for doubt in found["doubt"])
    page = (project / "data/report/index.html").read_text()
    assert "can hardly have worked" in page
    assert any("bias" in doubt for doubt in found["doubt"])
    project.set(bias__debias=False, fuse_labels__debias=False)
    project.repro("evaluate")
    assert not any("bias" in doubt for doubt in pd.read_csv(project / "data/doubts.csv")["doubt"])


def test_a_run_against_which_nothing_speaks_passes_the_check(project: Project):
    (project / "data/doubts.csv").write_text("doubt,remedy\n")
    done = project.run("ccd", "check")
    assert done.stdout.startswith("Nothing speaks against")


def test_before_a_run_there_is_nothing_to_check(project: Project):
    (project / "data/doubts.csv").unlink()
    done = project.run("ccd", "check", check=False)
    assert done.returncode == 1
    assert "dvc repro" in done.stderr
    assert "Traceback" not in done.stderr
