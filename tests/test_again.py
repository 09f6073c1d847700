"""`ccd again`: the classifier of the last run says where the next one looks."""

from __future__ import annotations

import pytest

from tests.conftest import Project


def test_another_update_begins_with_the_classifier_of_the_last_run(project: Project):
    before = project.digests("data/classifier/*")
    said = project.run("ccd", "again").stdout
    assert "data/rounds/1" in said
    assert list(project.digests("data/rounds/1/*").values()) == list(before.values())
    ran = project.repro()
    assert {"weights", "warmup", "cam_boxes", "train"} <= set(ran)
    assert not {"index", "global_clip", "bias"} & set(ran)
    first, warmed = (
        project.digests(f"data/{name}/student.safetensors") for name in ("rounds/1", "warmup")
    )
    assert list(first.values()) == list(warmed.values())
    assert project.digests("data/classifier/*") != before
    assert "data/rounds/2" in project.run("ccd", "again").stdout


def test_the_same_classifier_is_no_second_round(project: Project):
    project.run("ccd", "again")
    done = project.run("ccd", "again", check=False)
    assert done.returncode == 1
    assert "data/rounds/1 itself: run `dvc repro` first" in done.stderr
    assert not (project / "data/rounds/2").exists()


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("data/classifier/student.safetensors", "student.safetensors"),
        ("data/classifier/history.csv", "history.csv"),
        ("params.yaml", "params.yaml"),
    ],
)
def test_where_something_is_broken_nothing_is_changed(project: Project, broken: str, why: str):
    (project / broken).write_text("broken")
    params = project.digests("params.yaml")
    done = project.run("ccd", "again", check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert why in done.stderr
    assert project.digests("params.yaml") == params
    assert not (project / "data/rounds").exists()


def test_a_place_that_cannot_be_written_is_one_line(project: Project):
    (project / "data/rounds").write_text("a file")
    done = project.run("ccd", "again", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "data/rounds" in done.stderr


def test_views_that_no_student_chose_are_not_looked_at_again(project: Project):
    project.set(cam_boxes__views="grid", cam_boxes__mean_views=4.0)
    done = project.run("ccd", "again", check=False)
    assert done.returncode == 1
    assert "cam_boxes.views: grid" in done.stderr
