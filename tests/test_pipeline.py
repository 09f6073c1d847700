"""The whole pipeline: two runs give the same bytes, and its figures are those of an oracle."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import xarray
from sklearn.metrics import average_precision_score

from stages.runtime.errors import UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, execute
from stages.runtime.params import Params
from tests.conftest import MINI_CLASSES, Project
from tests.test_dvc_yaml import STAGES

EVERYTHING = ("data/**/*", "results/*", "dvc.lock")


def test_two_runs_from_nothing_give_the_same_bytes(
    finished: Project, laid_out: Path, tmp_path: Path
):
    """The second decodes in two processes of its own, and keeps nothing decoded."""
    shutil.copytree(laid_out, tmp_path / "elsewhere")
    again = Project(
        tmp_path / "elsewhere", finished.environment | {"CCD_WORKERS": "2", "CCD_CACHE_GB": "0"}
    )
    again.repro()
    assert again.digests(*EVERYTHING) == finished.digests(*EVERYTHING)


def test_running_every_stage_again_changes_nothing(project: Project):
    before = project.digests(*EVERYTHING)
    shutil.rmtree(project / ".ccd")
    said = project.run("dvc", "repro", "-f").stdout
    assert said.count("Running stage") == len(STAGES), said
    assert project.digests(*EVERYTHING) == before


def test_a_second_repro_runs_nothing(project: Project):
    assert project.repro() == []


def test_the_result_does_not_depend_on_the_size_of_blocks(project: Project):
    def embeddings() -> np.ndarray:
        return xarray.open_zarr(project / "data/global_clip.zarr", consolidated=False)[
            "embedding"
        ].to_numpy()

    before, boxes = embeddings(), pd.read_parquet(project / "data/cam_boxes.parquet")
    for stage in ("global_clip", "cam_boxes"):
        project.stage(stage, CCD_BLOCK="5", CCD_BATCH="3")
    assert np.abs(embeddings() - before).max() < 1e-3
    after = pd.read_parquet(project / "data/cam_boxes.parquet")
    assert np.abs(after["score"] - boxes["score"]).max() < 1e-3
    assert after.drop(columns="score").equals(boxes.drop(columns="score"))


def test_the_metrics_are_scikit_learns(finished: Project):
    metrics = json.loads((finished / "results/metrics.json").read_text())
    truth = pd.read_csv(finished / "truth.csv").set_index("image_id")

    def judge(name: str, split: str) -> float:
        scores = pd.read_parquet(finished / f"data/{name}.parquet").set_index("image_id")
        rows = [i for i in truth.index if i.startswith(f"{split}/")]
        values = [
            average_precision_score(truth.loc[rows, c], scores.loc[rows, c]) for c in MINI_CLASSES
        ]
        return round(100 * float(np.mean(values)), 2)

    assert metrics["mAP"] == judge("predictions", "test")
    assert metrics["teacher_mAP"] == judge("global_scores", "test")
    for name in ("initial", "local", "pseudo"):
        assert metrics["label_mAP"][name] == judge(f"{name}_labels", "train")


def test_a_class_without_a_positive_is_left_out_and_counted(project: Project):
    truth = pd.read_csv(project / "truth.csv")
    truth.loc[truth["image_id"].str.startswith("test/"), "star"] = 0
    truth.to_csv(project / "truth.csv", index=False)
    project.repro()
    metrics = json.loads((project / "results/metrics.json").read_text())
    assert metrics["classes_without_a_positive"] == 1
    per_class = pd.read_csv(project / "results/per_class.csv").set_index("class")
    assert np.isnan(per_class.loc["star", "student_AP"])
    others = per_class.drop("star")["student_AP"]
    assert metrics["mAP"] == pytest.approx(others.mean(), abs=0.02)


def test_labels_follow_from_the_artifacts_before_them(finished: Project):
    """The chain recomputed from the published tables, in plain pandas."""

    def table(name: str) -> pd.DataFrame:
        return pd.read_parquet(finished / f"data/{name}.parquet")

    classes = list(MINI_CLASSES)
    initial, pseudo = (table(n).set_index("image_id") for n in ("initial_labels", "pseudo_labels"))
    raw = table("global_scores").set_index("image_id").loc[initial.index]
    bias = table("bias").set_index("class")["bias"]
    assert np.allclose(initial, (raw.clip(lower=1 / 4) / bias[classes]).clip(upper=1), atol=1e-6)
    local = table("local_scores").groupby("image_id")[classes].max()
    debiased = local.clip(lower=1 / 4) / bias[classes]
    expected = (0.4 * initial + 0.6 * debiased.reindex(initial.index)).clip(upper=1)
    expected = expected.fillna(initial)
    assert np.allclose(pseudo, expected, atol=1e-6)


def test_a_loss_that_is_no_number_stops_the_training_with_the_images_named(project: Project):
    project.set(optimiser__lr=1e30)
    done = project.stage("warmup", check=False)
    assert done.returncode == 1
    assert re.search(r"the loss is (nan|inf) at train/\d+.jpg", done.stderr)
    assert "lower optimiser.lr in params.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_too_little_memory_is_one_line_that_says_what_to_set(project: Project, monkeypatch):
    monkeypatch.chdir(project.root)

    def run(params: Params, job: Job) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(UserError, match="not enough memory .* set CCD_BATCH"):
        execute("global_clip", run, partial(declaration, "global_clip"))


def test_branches_can_be_compared(project: Project):
    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", *identity, *words], cwd=project.root, check=True, capture_output=True
        )

    git("add", "-A")
    git("commit", "-qm", "a")
    git("branch", "-M", "base")
    git("checkout", "-qb", "softer")
    project.set(fuse_labels__alpha=0.9)
    project.repro()
    git("commit", "-qam", "b")
    params = project.run("dvc", "params", "diff", "base", "softer").stdout
    assert "fuse_labels.alpha" in params
    assert "0.4" in params
    assert (
        "label_mAP.pseudo"
        in project.run("dvc", "metrics", "diff", "--all", "base", "softer").stdout
    )
    project.run("dvc", "plots", "diff", "base", "softer", "-o", "plots")
    assert (project / "plots/index.html").exists()
    git("checkout", "-q", "base")
    assert project.repro() == []


def test_the_graph_reads_like_the_paper(finished: Project):
    order = [
        "index",
        "global_clip",
        "bias",
        "warmup",
        "cam_boxes",
        "local_clip",
        "fuse_labels",
        "train",
    ]
    dot = finished.run("dvc", "dag", "--dot").stdout
    for before, after in pairwise(order):
        assert f'"{before}" -> "{after}"' in dot
