"""`ccd status`: what would run and why, and how large what was made is."""

from __future__ import annotations

import shutil

import pytest

from stages.command.status import Standing, reasons, standings
from tests.conftest import Project
from tests.test_dvc_yaml import STAGES


def of(project: Project, monkeypatch: pytest.MonkeyPatch) -> dict[str, Standing]:
    monkeypatch.chdir(project.root)
    for name, value in project.environment.items():
        monkeypatch.setenv(name, value)
    return {standing.stage: standing for standing in standings()}


def test_after_a_run_no_stage_would_run_and_the_sizes_are_those_on_disk(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    found = of(project, monkeypatch)
    assert list(found) == list(STAGES)
    assert not any(standing.runs or standing.because for standing in found.values())
    labels = ("bias", "global_scores", "initial_labels")
    size = sum((project / f"data/{name}.parquet").stat().st_size for name in labels)
    assert found["bias"].size == size
    assert found["local_clip"].size > 1000


def test_a_changed_parameter_is_named_and_what_follows_may_run(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    project.set(fuse_labels__alpha=0.5)
    found = of(project, monkeypatch)
    runs = {name: standing.runs for name, standing in found.items() if standing.runs is not False}
    follow = ("train", "thresholds", "evaluate")
    assert runs == dict.fromkeys(follow) | dict.fromkeys(("check", "fuse_labels", "report"), True)
    assert found["fuse_labels"].because == "fuse_labels in params.yaml"
    assert found["train"].because == "after fuse_labels"


def test_what_was_deleted_and_what_was_edited_are_told_apart(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(project / "data/local_clip.zarr")
    (project / "data/bias.parquet").write_bytes(b"")
    with (project / "classes.txt").open("a") as classes:
        classes.write("\n")
    found = of(project, monkeypatch)
    assert found["local_clip"].because == "what it makes is not here"
    assert found["local_clip"].size == 0
    assert found["class_text"].because == "classes.txt"
    assert found["bias"].because == "what it made is not as it left it: data/bias.parquet"


def test_every_kind_of_change_is_said_in_words():
    changes = [
        {"changed deps": {"stages/bias.py": "modified", "params.yaml": {"bias": "modified"}}},
        {"changed deps": {"data/index.parquet": "modified", "photos": "modified"}},
        {"changed outs": {"data/bias.parquet": "not in cache"}},
        "changed command",
    ]
    assert reasons(changes, ["data/index.parquet"]) == (
        "changed command; bias in params.yaml; its code: stages/bias.py; photos; "
        "what it reads: data/index.parquet"
    )
    keys = {"code.yaml": {"bias": "modified"}, "params.yaml": {"seed": "modified"}}
    of_a_project = [{"changed deps": keys}]
    assert reasons(of_a_project, []) == "seed in params.yaml; its code, as `ccd update` took it up"
    assert reasons(changes[2:3], []) == "what it made is not as it left it: data/bias.parquet"


def test_wrong_parameters_and_a_folder_without_dvc_are_refused_in_one_line(project: Project):
    said = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(said.replace("  alpha:", "  alfa:"))
    done = project.run("ccd", "status", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "fuse_labels.alfa" in done.stderr
    shutil.rmtree(project / ".dvc")
    (project / "params.yaml").write_text(said)
    done = project.run("ccd", "status", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("ccd: ")
    assert len(done.stderr.strip().splitlines()) == 1
