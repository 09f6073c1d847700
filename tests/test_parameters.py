"""Every parameter does what it says: changing it changes the artifact that it should.

Those whose change reaches further stages by a row of docs/invalidation.md are proved there.
"""

from __future__ import annotations

import shutil
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
import zarr
from safetensors.torch import load_file

from tests import (
    test_engine,
    test_models,
    test_published_sources,
    test_review,
    test_sources,
    test_teachers,
)
from tests.conftest import MINI_CLASSES, Project, write_tiny_teacher
from tests.declarations import leaves
from tests.test_invalidation import rows

TRAINED = "first/student.safetensors"
WARMED_UP = "data/warmup/student.safetensors"
NOTHING: dict[str, Any] = {}
UNDIVIDED = {"bias.debias": False}
BOXES = "data/cam_boxes.parquet"
LOCAL = "data/local_clip.zarr/embedding/**/*"
# parameter, another value, what else is set before and after, the stage, what must change
CASES: list[tuple[str, Any, dict[str, Any], str, str]] = [
    ("source.root", "photos/train", NOTHING, "index", "data/index.parquet"),
    ("source.test_folder", "train", NOTHING, "index", "data/index.parquet"),
    (
        "source.max_pixels", 128 * 120, {"source.max_bad_share": 1.0}, "index", "data/index.parquet"
    ),
    ("source.classes", "fewer.txt", NOTHING, "class_text", "data/class_text.zarr/embedding/**/*"),
    ("teacher.checkpoint", "another", NOTHING, "weights", "data/weights/teacher/*.safetensors"),
    ("teacher.normalisation", "imagenet", NOTHING, "weights", "data/weights/teacher/*config.json"),
    ("student.weights", "random", NOTHING, "weights", "data/weights/student_init.safetensors"),
    (
        "student.arch", "resnet18", {"student.weights": "random"}, "weights",
        "data/weights/student_init.safetensors",
    ),
    (
        "student.checkpoint", "b.pth",
        {"student.arch": "resnet18", "student.weights": "checkpoint"},
        "weights", "data/weights/student_init.safetensors",
    ),
    ("student.head", "library", NOTHING, "warmup", "data/warmup/student.safetensors"),
    ("optimiser.batch", 6, NOTHING, "warmup", "data/warmup/student.safetensors"),
    ("warmup.head", "closed_form", NOTHING, "warmup", "data/warmup/student.safetensors"),
    ("train.head", "closed_form", NOTHING, "train", "data/classifier/student.safetensors"),
    ("warmup.sharpness", 2.0, NOTHING, "warmup", "data/warmup/student.safetensors"),
    ("train.sharpness", 2.0, NOTHING, "train", "data/classifier/student.safetensors"),
    ("optimiser.epoch_steps", 4, NOTHING, "warmup", "data/warmup/student.safetensors"),
    (
        "global_clip.aspect", "keep", {"global_clip.view_size": 128}, "global_clip",
        "data/global_clip.zarr/embedding/**/*",
    ),
    ("global_clip.precision", "bfloat16", NOTHING, "global_clip", "data/global_clip.zarr/e*/**/*"),
    ("local_clip.precision", "bfloat16", NOTHING, "local_clip", LOCAL),
    ("student.precision", "bfloat16", NOTHING, "warmup", "data/warmup/student.safetensors"),
    ("student.batch_norm", "frozen", NOTHING, "warmup", "data/warmup/student.safetensors"),
    ("labels.precision", "half", NOTHING, "bias", "data/initial_labels.parquet"),
    ("bias.entropy_unit", "nats", {"bias.entropy_limit": 0.95}, "bias", "data/bias.parquet"),
    ("bias.min_count", 1000, NOTHING, "bias", "data/bias.parquet"),
    ("cam_boxes.views", "random", NOTHING, "cam_boxes", BOXES),
    ("cam_boxes.boxes", "two.csv", {"cam_boxes.views": "file"}, "cam_boxes", BOXES),
    ("cam_boxes.selection", "search", {"cam_boxes.threshold": 0.01}, "cam_boxes", BOXES),
    ("cam_boxes.threshold", 0.01, {"cam_boxes.selection": "fixed"}, "cam_boxes", BOXES),
    ("cam_boxes.input_size", 96, NOTHING, "cam_boxes", BOXES),
    ("cam_boxes.box", "first_last", NOTHING, "cam_boxes", BOXES),
    ("labels.centre", "class_mean", NOTHING, "bias", "data/bias.parquet"),
    ("labels.centre", "class_mean", UNDIVIDED, "bias", "data/initial_labels.parquet"),
    ("labels.centre", "class_mean", NOTHING, "fuse_labels", "data/local_labels.parquet"),
    ("local_clip.source", "resized", NOTHING, "local_clip", LOCAL),
    ("local_clip.aspect", "square", NOTHING, "local_clip", LOCAL),
    ("local_clip.rounding", "pixel", NOTHING, "local_clip", LOCAL),
    ("train.stop", "published", NOTHING, "train", "data/classifier/*"),
    ("report.gallery", 3, NOTHING, "report", "data/report/index.html"),
    ("report.samples", 2, NOTHING, "report", "data/report/index.html"),
]  # fmt: skip
ELSEWHERE = {
    "source.answers": test_review.test_from_a_queue_to_labels_cuts_and_figures,
    "source.kind": test_published_sources.test_the_stages_index_a_published_layout_and_its_labels,
    "source.difficult": test_published_sources.test_what_is_only_difficult_to_see_counts_as_asked,
    "source.max_bad_share": (
        test_sources.test_too_many_bad_images_stop_the_run_and_the_first_are_named
    ),
    "global_clip.engine": test_engine.test_a_stage_is_run_by_the_engine_of_its_own,
    "local_clip.engine": test_engine.test_a_stage_is_run_by_the_engine_of_its_own,
    "teacher.model": test_models.test_an_unknown_model_or_tag_is_named,
    "teacher.pretrained": test_teachers.test_a_published_tag_is_a_file_that_may_be_checked,
    "teacher.sha256": test_teachers.test_a_file_with_another_digest_than_expected_is_refused,
}


@pytest.fixture
def supplied(project: Project) -> Project:
    """With what the cases' values name."""
    (project / "fewer.txt").write_text("\n".join(MINI_CLASSES[:2]))
    write_tiny_teacher(project / "another", mean=(0.4,) * 3)
    for name, lowest in (("one.csv", 50), ("two.csv", 60)):
        (project / name).write_text(f"image_id,x0,y0,x1,y1\ntrain/00000.jpg,0,0,40,{lowest}\n")
    return project


BEFORE = {"cam_boxes.boxes": "one.csv", "student.checkpoint": "a.pth"}


@pytest.mark.parametrize(
    ("key", "value", "others", "stage", "artifact"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES]
)
def test_a_parameter_changes_the_artifact_it_should(
    supplied: Project, key: str, value: Any, others: dict[str, Any], stage: str, artifact: str
):
    if key in BEFORE:
        others = others | {key: BEFORE[key]}
    if key == "student.checkpoint":
        for seed, name in enumerate((BEFORE[key], value)):
            torch.manual_seed(seed)
            weights = torchvision.models.resnet18(weights=None).state_dict()
            torch.save(weights, supplied / name)
    supplied.set(**{name.replace(".", "__"): given for name, given in others.items()})
    if others:
        supplied.stage(stage)
    before = content(supplied, artifact)
    assert before
    supplied.set(**{key.replace(".", "__"): value})
    supplied.stage(stage)
    assert content(supplied, artifact) != before


def content(project: Project, artifact: str) -> dict[str, bytes] | str:
    """What an artifact says, without the provenance in which the parameters may stand."""
    if artifact.endswith(".parquet"):
        return pd.read_parquet(project / artifact).to_csv(index=False)
    return project.digests(artifact)


def test_every_parameter_is_proved_here_or_where_it_is_said():
    reaching = {
        change.strip("`").partition(":")[0]
        for change, stages in rows()
        if change.startswith("`") and len(stages) > 1
    }
    proved = reaching | {case[0] for case in CASES} | set(ELSEWHERE) | {"fuse_labels.no_view"}
    assert leaves() <= proved, leaves() - proved


def test_the_mean_similarity_of_a_class_stands_beside_its_bias(supplied: Project):
    supplied.stage("bias")
    initial = pd.read_parquet(supplied / "data/initial_labels.parquet").set_index("image_id")
    similarity = similarity_of(supplied, initial.index)
    kept = pd.read_parquet(supplied / "data/bias.parquet").set_index("class")["similarity"]
    assert kept.to_numpy() == pytest.approx(similarity.mean().to_numpy(), rel=1e-5)


def similarity_of(project: Project, ids: pd.Index) -> pd.DataFrame:
    images = zarr.open_group(project / "data/global_clip.zarr")
    texts = zarr.open_group(project / "data/class_text.zarr")
    found = images["embedding"][...] @ texts["embedding"][...].T
    return pd.DataFrame(found, index=images["image"][...], columns=MINI_CLASSES).loc[ids]


def test_a_classifier_is_trained_on_from_where_it_was(supplied: Project):
    shutil.copytree(supplied / "data/classifier", supplied / "first")
    supplied.set(student__weights="classifier", student__checkpoint="first", warmup__epochs=0)
    for stage in ("weights", "warmup"):
        supplied.stage(stage)
    first, warmed = (load_file(supplied / name) for name in (TRAINED, WARMED_UP))
    assert first.keys() == warmed.keys()
    assert all(torch.equal(first[name], warmed[name]) for name in first)
    words = (supplied / "classes.txt").read_text()
    (supplied / "classes.txt").write_text(words.replace(MINI_CLASSES[0], "comet"))
    for stage in ("class_text", "bias"):
        supplied.stage(stage)
    done = supplied.run("python", "-m", "stages.warmup", check=False)
    assert done.returncode == 1
    assert "that classifier knows other classes" in done.stderr
    supplied.set(student__output_stride=32)
    done = supplied.run("python", "-m", "stages.weights", check=False)
    assert "another network than teacher_tower with an output stride of 32" in done.stderr
    (supplied / "first/student.json").unlink()
    done = supplied.run("python", "-m", "stages.weights", check=False)
    assert "first holds no student.safetensors with its .json" in done.stderr


def test_an_image_without_a_view_keeps_its_label_or_has_zeros_mixed_in(supplied: Project):
    supplied.set(cam_boxes__views="file", cam_boxes__boxes="one.csv")
    for stage in ("cam_boxes", "local_clip", "fuse_labels"):
        supplied.stage(stage)
    initial = pd.read_parquet(supplied / "data/initial_labels.parquet").set_index("image_id")
    kept = pd.read_parquet(supplied / "data/pseudo_labels.parquet").set_index("image_id")
    viewed = initial.index == "train/00000.jpg"
    assert (kept[~viewed] == initial[~viewed]).all(axis=None)
    assert not (kept[viewed] == initial[viewed]).all(axis=None)
    supplied.set(fuse_labels__no_view="zeros")
    supplied.stage("fuse_labels")
    mixed = pd.read_parquet(supplied / "data/pseudo_labels.parquet").set_index("image_id")
    bias = pd.read_parquet(supplied / "data/bias.parquet")["bias"].to_numpy()
    expected = 0.4 * initial[~viewed] + 0.6 * (0.25 / bias)
    assert (mixed[~viewed] - expected.clip(0, 1)).abs().max(axis=None) < 1e-6
    assert (mixed[viewed] == kept[viewed]).all(axis=None)
