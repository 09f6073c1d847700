"""`ccd compare`: results here beside those committed elsewhere."""

from __future__ import annotations

import pandas as pd
import pytest

from stages.command.compare import compare, differences
from tests.conftest import Project


def test_the_leaves_that_differ_are_named():
    there = {"seed": 0, "train": {"epochs": 5, "jitter": [0.5]}, "old": {"a": 1}}
    here = {"seed": 0, "train": {"epochs": 8, "jitter": [0.5]}, "new": 2}
    assert differences(there, here) == {
        "train.epochs": (5, 8),
        "old": ({"a": 1}, None),
        "new": (None, 2),
    }
    assert differences(there, there) == {}


def test_a_branch_is_compared_with_what_is_here(project: Project, monkeypatch: pytest.MonkeyPatch):
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=a", "-c", "user.email=", "commit", "-qm", "before")
    project.run("git", "branch", "before")
    committed = pd.read_csv(project / "results/ladder.csv")
    project.set(train__epochs=1)
    project.repro()
    here = pd.read_csv(project / "results/ladder.csv")
    monkeypatch.chdir(project.root)
    found = compare("before")
    assert found.params == {"train.epochs": (5, 1)}
    assert found.ladder["what"].tolist() == here["what"].tolist()
    assert found.ladder["mAP there"].tolist() == committed["mAP"].tolist()
    assert found.ladder["mAP here"].tolist() == here["mAP"].tolist()
    change = (found.classes["student_AP here"] - found.classes["student_AP there"]).abs().dropna()
    assert change.is_monotonic_decreasing
    shown = project.run("ccd", "compare", "before").stdout
    last = here["mAP"].iloc[-1]
    assert "train.epochs  5       1" in shown
    assert f"{last:.1f}  {last - committed['mAP'].iloc[-1]:+.1f}" in shown
