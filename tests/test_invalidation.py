"""Exactly the invalidated stages rerun: each row of docs/invalidation.md, by a real `dvc repro`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import pytest
from ruamel.yaml import YAML

from stages.runtime.code import ROOT
from tests.conftest import Project, edit_params
from tests.declarations import leaves
from tests.test_dvc_yaml import STAGES, paths, reaches

LABELS = ["warmup", "cam_boxes", "local_clip", "fuse_labels", "train", "thresholds"]
LABELS += ["evaluate", "report"]


def rows() -> list[tuple[str, set[str]]]:
    table = (ROOT / "docs/invalidation.md").read_text()
    found = []
    for change, stages in re.findall(r"^\| (.+?) \| (.+?) \|$", table, flags=re.M):
        if change != "change":
            words = [w for s in stages.split() for w in (LABELS if s == "…labels" else [s])]
            found.append((change, set(words) - {"nothing"}))
    return found


def rename_class(project: Project) -> None:
    file = project / "classes.txt"
    file.write_text(file.read_text().replace("moon", "crescent"))
    truth = project / "truth.csv"
    truth.write_text(truth.read_text().replace("moon", "crescent"))


def flip_label(project: Project) -> None:
    file = project / "truth.csv"
    lines = file.read_text().splitlines()
    last = lines[-1]
    lines[-1] = last[:-1] + str(1 - int(last[-1]))
    file.write_text("\n".join(lines) + "\n")


def answer(project: Project) -> None:
    names = (project / "classes.txt").read_text().splitlines()
    row = ["train/00000.jpg", "0", "1", *[""] * (len(names) - 2)]
    text = f"{','.join(['image_id', *names])}\n{','.join(row)}\n"
    (project / "answers.csv").write_text(text)
    project.set(source__answers="answers.csv")


def add_photo(project: Project) -> None:
    shutil.copy(project / "photos/train/00000.jpg", project / "photos/train/99999.jpg")


def reorder(project: Project) -> None:
    path = project / "params.yaml"
    content = YAML(typ="safe").load(path)
    YAML().dump(dict(reversed(content.items())), path)


def append(name: str, text: str) -> Callable[[Project], None]:
    def change(project: Project) -> None:
        with (project / name).open("a") as file:
            file.write(text)

    return change


BY_HAND: dict[str, Callable[[Project], None]] = {
    "a comment in `params.yaml`": append("params.yaml", "# nothing\n"),
    "another order of the keys in `params.yaml`": reorder,
    "a class name in the file of `source.classes`": rename_class,
    "a label in the file of `source.labels`": flip_label,
    "an answer in a file that `source.answers` names": answer,
    "another photograph below `source.root`": add_photo,
    "a comment in `stages/method/fusion.py`": append("stages/method/fusion.py", "# nothing\n"),
    "a comment in `stages/page/charts.py`": append("stages/page/charts.py", "# nothing\n"),
}


def apply(project: Project, change: str) -> None:
    if change in BY_HAND:
        BY_HAND[change](project)
        return
    key, _, value = change.strip("`").partition(": ")
    edit_params(project / "params.yaml", {key: YAML(typ="safe", pure=True).load(value)})


def test_the_table_has_many_rows_of_parameters():
    assert sum(change.startswith("`") for change, _ in rows()) >= 20


def one_of_each_set() -> list[tuple[str, set[str]]]:
    """The first row of each set of stages."""
    first: dict[frozenset[str], str] = {}
    for change, expected in rows():
        first.setdefault(frozenset(expected), change)
    return [(change, set(expected)) for expected, change in first.items()]


@pytest.mark.parametrize(
    ("change", "expected"), one_of_each_set(), ids=[change for change, _ in one_of_each_set()]
)
def test_a_change_reruns_these_stages(project: Project, change: str, expected: set[str]):
    apply(project, change)
    assert set(project.repro()) - {"check"} == expected


@pytest.mark.parametrize(
    "change", ["`fuse_labels.alpha: 0.6`", "a class name in the file of `source.classes`"]
)
def test_changing_back_runs_nothing_and_restores_the_outputs(project: Project, change: str):
    files = ("params.yaml", "classes.txt", "truth.csv")
    before = {name: (project / name).read_bytes() for name in files}
    outputs = project.digests("results/*", "data/*.parquet")
    apply(project, change)
    assert project.repro("train")
    assert project.digests("results/*", "data/*.parquet") != outputs
    for name, content in before.items():
        (project / name).write_bytes(content)
    assert set(project.repro()) <= {"check"}
    assert project.digests("results/*", "data/*.parquet") == outputs


def test_the_stages_of_a_row_are_those_that_declare_the_parameter_and_what_follows():
    for change, expected in rows():
        if change not in BY_HAND:
            least, most = declaring(change)
            assert least <= expected <= most, change


def declaring(change: str) -> tuple[set[str], set[str]]:
    """The stages that declare a parameter, alone, and with all that reads what they write."""
    key = change.strip("`").partition(": ")[0]
    found = {
        stage
        for stage, entry in STAGES.items()
        if any(key in leaves(declared) for declared in entry.get("params", []))
    }
    assert found
    outputs = set().union(*(paths(stage, "outs", "metrics", "plots") for stage in found))
    return found, found | reaches(outputs)
