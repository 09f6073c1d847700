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


def commit(project: Project, name: str) -> None:
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=a", "-c", "user.email=", "commit", "-qm", name)
    project.run("git", "tag", name)


def test_results_of_before_a_figure_was_there_are_compared_in_the_others(project: Project):
    classes = pd.read_csv(project / "results/per_class.csv")
    classes.drop(columns="student_F1").to_csv(project / "results/per_class.csv", index=False)
    commit(project, "old")
    classes.to_csv(project / "results/per_class.csv", index=False)
    shown = project.run("ccd", "compare", "old").stdout
    assert "The parameters are those of old." in shown
    assert f"{classes['student_AP'].max():.1f}" in shown


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("params.yaml", "seed: [", "params.yaml of odd is not valid YAML"),
        ("results/ladder.csv", "a,b\n1,2\n", "results/ladder.csv of odd has no column split"),
        ("results/ladder.csv", "", "results/ladder.csv of odd is no CSV of the pipeline's"),
    ],
)
def test_odd_results_are_one_line(project: Project, file: str, content: str, why: str):
    before = (project / file).read_text()
    (project / file).write_text(content)
    commit(project, "odd")
    (project / file).write_text(before)
    done = project.run("ccd", "compare", "odd", check=False)
    assert (done.returncode, done.stderr) == (1, f"ccd: {why}\n")
