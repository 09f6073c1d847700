"""`ccd doctor` says before a run what cannot work in it, and how long it would take."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from stages.command import doctor
from stages.command.doctor import examine, of_settings, steps_of
from stages.command.estimate import Size, hours_of
from stages.command.preset import preset
from stages.runtime.errors import UserError
from stages.runtime.params import Params
from stages.runtime.params_file import edit_params, parse_params, read_yaml
from tests.conftest import Project


def params_of(tmp_path: Path, **changes: object) -> Params:
    path = tmp_path / "params.yaml"
    path.write_text(preset("folder", "recommended"))
    edit_params(path, {key.replace("__", "."): value for key, value in changes.items()})
    return parse_params(YAML(typ="safe", pure=True).load(path))


def named(params: Params, size: Size) -> set[str]:
    return {finding.what for finding in of_settings(params, size)}


def test_limits_that_filter_nothing_are_named(tmp_path: Path):
    seven, twenty = Size(5000, 5000, 7), Size(5000, 5000, 20)
    assert math.log(7) < 2 < math.log(20)
    given = params_of(tmp_path, bias__debias=True)  # entropy_limit 2.0 nats, eight views
    assert named(given, seven) == {"bias.entropy_limit", "cam_boxes.mean_views"}
    assert not named(given, twenty)
    assert named(params_of(tmp_path), seven) == {"cam_boxes.mean_views"}  # divides by no bias
    local = params_of(tmp_path, bias__debias=False, fuse_labels__debias=True)
    assert "bias.entropy_limit" in named(local, seven)
    laptop = parse_params(YAML(typ="safe", pure=True).load(preset("folder", "laptop")))
    assert not named(laptop, seven)


def test_a_training_of_few_steps_is_named_and_more_of_them_are_not(tmp_path: Path):
    few = Size(56, 56, 20)
    given = params_of(tmp_path)
    assert steps_of(given, 56) == math.ceil(56 / 16) * 10
    assert named(given, few) == {"steps of training"}
    assert not named(params_of(tmp_path, optimiser__epoch_steps=50), few)


def test_a_gpu_is_no_reason_not_to_look_for_python_and_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "device", lambda: "cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a card")
    assert doctor.of_machine().found.startswith("a card, ")
    monkeypatch.setenv("PATH", "")
    assert doctor.of_machine().remedy == "activate the environment"


def test_one_class_cannot_be_told_from_nothing(tmp_path: Path):
    assert named(params_of(tmp_path), Size(5000, 5000, 1)) == {"classes"}


def test_a_text_encoder_that_would_be_fetched_is_refused(tmp_path: Path):
    given = params_of(
        tmp_path,
        teacher__model="xlm-roberta-base-ViT-B-32",
        teacher__pretrained="laion5b_s13b_b90k",
    )
    with pytest.raises(UserError, match="text encoder of others"):
        hours_of(given, Size(10, 10, 4), 0.0)


def test_twice_the_views_and_the_epochs_take_longer(
    finished: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.root)
    given = parse_params(read_yaml(Path("params.yaml")))
    monkeypatch.setattr("stages.command.estimate.usual_time", lambda work, seconds: 1.0)
    hours, views = hours_of(given, Size(32, 24, 4), 0.0)
    assert views == 48
    more = given.model_copy(update={"train": given.train.model_copy(update={"epochs": 10})})
    assert hours_of(more, Size(32, 24, 4), 0.0)[0] > hours
    assert hours_of(given, Size(64, 48, 4), 0.0)[0] == pytest.approx(2 * hours)


def test_a_project_that_is_fit_to_run_is_said_to_be(finished: Project):
    before = finished.digests("**/*")
    done = finished.run("ccd", "doctor", "--seconds", "0.1", check=False)
    found = set(re.findall(r"^[ !] ([\w. ]+):", done.stdout, flags=re.M))
    assert found >= {"machine", "photographs", "teacher", "student", "time"}
    assert (done.returncode == 1) == ("! " in done.stdout)
    assert "32, 24 of them to train on; 4 classes" in done.stdout
    assert finished.digests("**/*") == before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"teacher__checkpoint": "gone"}, "gone is not there"),
        (
            {"teacher__model": "RN50", "teacher__pretrained": "best"}
            | {"teacher__checkpoint": "data/none"},
            "open_clip has no 'best' of 'RN50'",
        ),
        ({"source__root": "gone"}, "gone is no folder"),
        ({"student__weights": "checkpoint", "student__checkpoint": "gone"}, "gone is not there"),
        ({"seed": -1}, "`seed` is -1"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(project: Project, change: dict, why: str):
    project.set(**change)
    done = project.run("ccd", "doctor", "--seconds", "0", check=False)
    assert done.returncode == 1
    assert why in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_weights_of_a_tag_that_are_not_here_are_named_with_where_they_are_published(
    project: Project,
):
    project.set(
        teacher__model="RN50-quickgelu",
        teacher__pretrained="openai",
        teacher__checkpoint="data/none",
        student__arch="resnet18",
        student__weights="random",
        student__output_stride=32,
    )
    done = project.run("ccd", "doctor", "--seconds", "0", check=False)
    assert "  teacher: RN50-quickgelu openai is not on this machine" in done.stdout
    assert "teacher.checkpoint" in done.stdout


def test_examining_writes_no_line_where_nothing_is_measured(
    finished: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.root)
    given = parse_params(read_yaml(Path("params.yaml")))
    assert "time" not in {finding.what for finding in examine(given, 0)}
