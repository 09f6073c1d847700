"""A model that is not the one that was asked for is no model: nothing is random, zero or broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import Project
from tests.faults.conftest import refusal

WEIGHTS = "teacher/open_clip_model.safetensors"


def edit_tensor(project: Project, name: str, change: Callable[[torch.Tensor], object]) -> None:
    tensors = load_file(project / WEIGHTS)
    change(tensors[name])
    save_file(tensors, project / WEIGHTS)


def edit_config(project: Project, **preprocess: list[float]) -> None:
    path = project / "teacher/open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] |= preprocess
    path.write_text(json.dumps(config))


def test_a_teacher_without_its_weights_is_refused(project: Project):
    (project / WEIGHTS).unlink()
    said = refusal(project.stage("weights", check=False))
    assert "teacher holds no weights by the name of open_clip_model.safetensors" in said


def test_weights_under_a_name_that_nobody_looks_for_are_no_weights(project: Project):
    (project / WEIGHTS).rename(project / "teacher/mine.ckpt")
    said = refusal(project.stage("weights", check=False))
    assert "but mine.ckpt, open_clip_config.json" in said


def test_the_only_weights_in_the_folder_are_the_teachers_whatever_their_name(project: Project):
    before = (project / "data/weights/teacher/open_clip_model.safetensors").read_bytes()
    (project / WEIGHTS).rename(project / "teacher/mine.safetensors")
    project.stage("weights")
    assert (project / "data/weights/teacher/open_clip_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("wrong", ["missing", "surplus", "shape"])
def test_tensors_that_are_not_those_of_the_model_are_named(project: Project, wrong: str):
    tensors = load_file(project / WEIGHTS)
    if wrong == "surplus":
        tensors["visual.extra"] = torch.zeros(1)
    else:
        taken = tensors.pop("visual.conv1.weight")
        if wrong == "shape":
            tensors["visual.conv1.weight"] = taken[:1].clone()
    save_file(tensors, project / WEIGHTS)
    said = refusal(project.stage("weights", check=False))
    assert "does not fit" in said
    assert ("visual.extra" if wrong == "surplus" else "visual.conv1.weight") in said


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("visual.conv1.weight", lambda t: t[0].fill_(torch.nan), "visual.conv1.weight holds"),
        ("text_projection", lambda t: t.fill_(torch.inf), "text_projection holds values"),
        ("visual.attnpool.c_proj.weight", lambda t: t.zero_(), "the same of all pictures"),
        ("text_projection", lambda t: t.zero_(), "the same of all texts"),
        ("logit_scale", lambda t: t.fill_(1000.0), "its temperature is 0.0"),
        ("logit_scale", lambda t: t.fill_(torch.nan), "logit_scale holds values"),
    ],
)
def test_a_teacher_that_cannot_see_is_refused_before_it_looks_at_photographs(
    project: Project, name: str, change: Callable[[torch.Tensor], object], expected: str
):
    edit_tensor(project, name, change)
    assert expected in refusal(project.stage("weights", check=False))


@pytest.mark.parametrize("std", [[0.25, 0.0, 0.25], [float("nan")] * 3])
def test_a_deviation_that_nothing_can_be_divided_by_is_refused(project: Project, std: list[float]):
    edit_config(project, std=std)
    said = refusal(project.stage("weights", check=False))
    assert "teacher/open_clip_config.json: preprocess_cfg.std" in said


def test_a_picture_of_which_the_teacher_says_nan_is_named(project: Project):
    """As half precision overflows: here an image that the pinned weights cannot take."""
    from stages.models.weights import TeacherNote, load_weights
    from stages.storage.provenance import write_sums

    folder = project / "data/weights/teacher"
    path = folder / "open_clip_model.safetensors"
    tensors, note = load_weights(path, TeacherNote)
    tensors["visual.attnpool.c_proj.bias"][0] = torch.nan
    save_file(tensors, path)
    path.with_suffix(".json").write_text(note.of_file(path.read_bytes()).to_json())
    write_sums(folder)
    said = refusal(project.stage("global_clip", check=False))
    assert "test/00000.jpg: what the network says (embedding) is not finite" in said


def test_a_student_that_says_the_same_of_everything_stops_the_run(project: Project):
    from stages.models.student import StudentConfig
    from stages.models.weights import load_weights, save_weights

    path = project / "data/warmup/student.safetensors"
    tensors, note = load_weights(path, StudentConfig)
    tensors["head.weight"].zero_()
    tensors["head.bias"].fill_(100.0)
    save_weights(path, tensors, note)
    said = refusal(project.stage("cam_boxes", check=False))
    assert "says the same of every image" in said


@pytest.mark.parametrize(
    ("file", "stage", "edit"),
    [
        ("data/warmup/student.json", "cam_boxes", ('"star"', '"heart"')),
        ("data/warmup/student.json", "cam_boxes", ('"boost": 3.0', '"boost": 4.0')),
        ("data/warmup/student.json", "train", ('"size": 64', '"size": 96')),
        ("data/weights/student_init.json", "warmup", ("0.25", "0.75")),
        ("data/weights/teacher/open_clip_config.json", "global_clip", ("0.25", "0.75")),
        ("data/weights/teacher/open_clip_model.json", "class_text", ('"model"', '"origin"')),
        ("data/class_text.zarr/zarr.json", "bias", ('"temperature": 0.', '"temperature": 1.')),
        ("data/warmup/history.csv", "train", ("1", "2")),
        ("data/classifier/history.csv", "evaluate", ("1", "2")),
        ("results/per_class.csv", "report", ("1", "2")),
        ("results/metrics.json", "report", ("1", "2")),
    ],
)
def test_a_note_that_was_changed_by_hand_is_refused(
    project: Project, file: str, stage: str, edit: tuple[str, str]
):
    path = project / file
    text = path.read_text()
    assert edit[0] in text
    path.write_text(text.replace(*edit, 1))
    said = refusal(project.stage(stage, check=False))
    assert file.removesuffix("/zarr.json") in said


def test_two_classes_swapped_in_the_deployed_note_are_noticed(project: Project, tmp_path: Path):
    path = project / "data/classifier/student.json"
    note = json.loads(path.read_text())
    note["classes"].reverse()
    path.write_text(json.dumps(note))
    said = refusal(project.run("ccd", "predict", "photos/test", check=False))
    assert "student.json was changed by hand or is damaged" in said


@pytest.mark.parametrize("what", ["flip", "truncate"])
def test_a_kept_epoch_that_was_damaged_costs_an_epoch_and_changes_nothing(
    project: Project, what: str
):
    project.set(train__stop="last_epoch")
    project.stage("train")
    expected = (project / "data/classifier/student.safetensors").read_bytes()
    newest = max((project / ".ccd/train").glob("*/epochs/*.safetensors"))
    content = bytearray(newest.read_bytes())
    content[-100] ^= 0x40  # within the weights
    newest.write_bytes(content if what == "flip" else content[:-1])
    done = project.stage("train")
    assert f"{newest.relative_to(project.root)} is damaged; going back one epoch" in done.stderr
    assert "resuming after epoch 4 of 5" in done.stderr
    assert (project / "data/classifier/student.safetensors").read_bytes() == expected
