"""A run that cannot have worked is called so, and one that worked is not."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from stages.artifacts import RESULTS
from stages.method.verdict import doubts
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


def said(teacher: np.ndarray, student: np.ndarray, measured: np.ndarray) -> list[str]:
    return [each.doubt for each in doubts(teacher, student, measured, CLASSES)]


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


def test_a_student_that_calls_nothing_is_named():
    teacher, student, measured = sound()
    assert "calls 0.00 classes an image" in said(teacher, student / 3, measured)[0]


def test_a_student_that_never_calls_most_classes_is_named():
    teacher, student, measured = sound()
    student[:, 1:] /= 3
    assert "never calls most of the classes: dog, cow, horse" in said(teacher, student, measured)[0]


def test_a_student_that_disagrees_with_its_teacher_is_named():
    teacher, student, measured = sound()
    (doubt,) = said(teacher, np.roll(student, 1, axis=1), measured)
    assert "the same first class on" in doubt


def test_one_class_needs_no_other_to_compare_with():
    _, student, measured = sound()
    assert doubts(np.ones((IMAGES, 1)), student[:, :1], measured[:1], ["cat"]) == []


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
