"""`ccd compare`: results here beside those committed elsewhere."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from stages.command.compare import compare, differences
from stages.command.compare_page import apart
from tests.conftest import CHROMIUM, Project
from tests.test_report_in_a_browser import CONTRAST


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


def test_a_comparison_is_a_page_too(project: Project):
    commit(project, "before")
    project.set(train__epochs=1)
    classes = pd.read_csv(project / "results/per_class.csv")
    classes["student_AP"] -= 3
    classes.to_csv(project / "results/per_class.csv", index=False)
    shown = project.run("ccd", "compare", "before", "--page", "beside.html").stdout
    assert "beside.html has it as a page." in shown
    page = (project / "beside.html").read_text()
    assert "<code>train.epochs</code>" in page
    for name in classes["class"]:
        assert f'<td class="name">{name}</td>' in page
    assert page.count("-3.0") == classes["student_AP"].notna().sum()
    assert page.count("<svg") == 2
    assert "http:" not in page.replace("http://www.w3.org", "")
    for path, said in (("beside.txt", "should end with .html"), ("no/beside.html", "no folder no")):
        done = project.run("ccd", "compare", "before", "--page", path, check=False)
        assert done.returncode == 2
        assert said in done.stderr
        assert not (project / path).exists()


@pytest.mark.parametrize("revision", ["class", "what", "of", "percent", "here"])
def test_a_branch_may_be_called_as_a_column_is(revision: str):
    figures = {"mAP": [50.0, 60.0], "student_AP": [50.0, 60.0]}
    for what, figure in (("what", "mAP"), ("class", "student_AP")):
        table = pd.DataFrame({what: ["a", "b"]})
        table[f"{figure} there"], table[f"{figure} here"] = figures[figure], [55.0, 61.0]
        assert apart(table, what, figure, revision).count("symbol") >= 4


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_of_a_comparison_is_legible_and_asks_nothing(
    project: Project, browser: Any, scheme: str
):
    commit(project, "before")
    project.set(train__epochs=1)
    project.run("ccd", "compare", "before", "--page", "beside.html")
    for width in (1280, 390):
        view = {"width": width, "height": 900}
        opened = browser.new_page(viewport=view, color_scheme=scheme)
        asked: list[str] = []
        opened.on("request", lambda request, asked=asked: asked.append(request.url))
        opened.goto((project / "beside.html").as_uri())
        assert len(asked) == 1
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        least, text = opened.evaluate(CONTRAST)
        assert least >= 4.5, text
        opened.close()
