"""Heads on the first weights' features: no image is looked at twice, and nothing else changes."""

from __future__ import annotations

import re
import shutil
import signal

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import zarr
from safetensors.torch import load_file

from stages.images.prefetch import load_global_views
from stages.models.student import Student
from stages.storage.index import read_index, usable
from tests.conftest import Project, as_ordinary_processes
from tests.test_resume import SMALL, end_group, halt_at_work, pieces, start

STORE = "data/student_features.zarr/**/*"
AFTER = (
    "student_features",
    "warmup",
    "cam_boxes",
    "local_clip",
    "fuse_labels",
    "train",
    "thresholds",
    "evaluate",
)


@pytest.fixture
def instant(project: Project) -> Project:
    """As the recipe `instant` has it."""
    project.set(
        student__boost=1.0,
        warmup__epochs=0,
        warmup__head="closed_form",
        cam_boxes__views="windows",
        cam_boxes__mean_views=4.0,
        train__epochs=0,
        train__head="closed_form",
        train__sharpness=2.0,
    )
    return project


def stored(project: Project) -> np.ndarray:
    return np.asarray(zarr.open_group(project / "data/student_features.zarr")["pooled"][...])


def test_there_are_none_where_nobody_asks_for_them(finished: Project):
    assert stored(finished).shape == (0, 2, 1)


def test_they_are_what_the_student_sees_of_each_image_and_its_mirror_image(
    instant: Project, monkeypatch: pytest.MonkeyPatch
):
    for stage in AFTER[:2]:
        instant.stage(stage)
    monkeypatch.chdir(instant.root)
    index, digest = read_index()
    student = Student.load(instant / "data/warmup/student.safetensors", "cpu", digest).eval()
    rows = usable(index)
    views = next(load_global_views(rows, 64, [range(len(rows))]))
    features = stored(instant)
    assert len(features) == len(index)
    there = (index["status"] == "ok").to_numpy()
    assert np.isnan(features[~there]).all()
    for mirrored in (False, True):
        seen = student.pooled_features(views.flip(-1) if mirrored else views)[:, 0].numpy()
        assert np.allclose(features[there, int(mirrored)], seen, rtol=1e-3, atol=1e-7)
    assert not np.allclose(features[there, 0], features[there, 1], rtol=1e-3, atol=1e-7)


def test_what_is_judged_is_what_the_classifier_says_of_the_images(
    instant: Project, monkeypatch: pytest.MonkeyPatch
):
    for stage in AFTER:
        instant.stage(stage)
    assert not list(instant.root.glob(".ccd/evaluate/*/blocks*")), "the images were looked at"
    monkeypatch.chdir(instant.root)
    index, digest = read_index()
    rows = usable(index)
    student = Student.load(instant / "data/classifier/student.safetensors", "cpu", digest).eval()
    said = student.scores(next(load_global_views(rows, 64, [range(len(rows))]))).numpy()
    table = pd.read_parquet(instant / "data/predictions.parquet")
    assert table["image_id"].tolist() == rows["image_id"].tolist()
    assert np.allclose(table[list(student.config.classes)], said, atol=1e-5)
    assert said.std(axis=0).min() > 1e-4


def test_a_head_fitted_to_stored_features_is_that_fitted_to_the_images(instant: Project):
    instant.stage("student_features")
    instant.stage("warmup")
    from_store = weights(instant, "data/warmup/student.safetensors")["head.weight"]
    instant.set(warmup__epochs=1)  # nobody asks for them any more
    instant.stage("student_features")
    instant.set(warmup__epochs=0)
    instant.stage("warmup")
    from_images = weights(instant, "data/warmup/student.safetensors")["head.weight"]
    assert F.cosine_similarity(from_store.flatten(1), from_images.flatten(1)).min() > 0.999


def weights(project: Project, name: str) -> dict[str, torch.Tensor]:
    return load_file(project / name)


def test_a_trained_student_is_not_taken_for_its_first_weights(instant: Project):
    instant.set(train__epochs=1, train__sharpness=1.0)
    for stage in AFTER:
        instant.stage(stage)
    first = weights(instant, "data/weights/student_init.safetensors")
    kept = weights(instant, "data/classifier/student.safetensors")
    assert any(not torch.equal(kept[f"backbone.{name}"], value) for name, value in first.items())
    assert list(instant.root.glob(".ccd/evaluate/*/blocks*")), "other weights' features"


def test_features_of_another_student_are_refused(instant: Project):
    instant.stage("student_features")
    instant.set(student__input_size=96)
    done = instant.stage("warmup", check=False)
    assert "data/student_features.zarr is of another student: run `dvc repro`" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_head_on_stored_features_waits_for_no_library_of_networks(instant: Project):
    for stage in AFTER[:-3]:
        instant.stage(stage)
    cold = as_ordinary_processes(instant)
    for stage in ("warmup", "train", "thresholds", "evaluate"):
        imported = cold.run("python", "-X", "importtime", "-m", f"stages.{stage}").stderr
        assert " torch\n" in imported
        assert not re.search(r"\| +(timm|torchvision|open_clip)$", imported, flags=re.M), stage


def test_killed_and_run_again_they_are_the_same_bytes(instant: Project):
    instant.stage("student_features", **SMALL)
    expected = instant.digests(STORE)
    shutil.rmtree(instant / "data/student_features.zarr")
    shutil.rmtree(instant / ".ccd/student_features")
    cold = as_ordinary_processes(instant)
    process = start(cold, "python", "-m", "stages.student_features")
    halt_at_work(cold, "student_features", 3, process)
    end_group(process, signal.SIGKILL)
    assert len(pieces(cold, "student_features")) >= 3
    said = cold.stage("student_features", **SMALL).stderr
    assert "resuming" in said
    assert cold.digests(STORE) == expected
