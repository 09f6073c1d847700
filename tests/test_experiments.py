"""The methods that CCD is compared with run on the pipeline's artifacts, and go on after a stop."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from experiments.cdul import Aligned
from experiments.clone import show_experiments
from experiments.methods import METHODS
from experiments.settings import Baseline, Cdul
from experiments.table1 import CCD, LEVELS, summary
from stages.method.average_precision import mean_average_precision
from tests.conftest import MINI_CLASSES, Project, edit_params
from tests.declarations import ROOT, import_closure

EXPERIMENTS: dict[str, Any] = YAML(typ="safe").load(ROOT / "experiments/dvc.yaml")["stages"]


@pytest.fixture
def comparing(project: Project) -> Project:
    """A finished project, with the experiments."""
    with_experiments(project)
    return project


def with_experiments(project: Project) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "experiments", project / "experiments", ignore=ignore)


@pytest.mark.parametrize("stage", EXPERIMENTS)
def test_the_code_an_experiment_depends_on_is_what_it_imports(stage: str):
    declared = {dep for dep in EXPERIMENTS[stage]["deps"] if dep.endswith(".py")}
    assert declared == import_closure(ROOT / f"experiments/{stage}.py")


def test_the_methods_of_the_matrix_are_those_there_are():
    assert EXPERIMENTS["baseline"]["matrix"]["method"] == list(METHODS)


def test_cdul_trains_on_the_mean_of_whole_image_and_tiles(comparing: Project):
    comparing.set(cam_boxes__views="grid", cam_boxes__mean_views=9.0, train__epochs=3)
    comparing.repro("fuse_labels")
    comparing.run("python", "-m", "experiments.cdul")
    found = json.loads((comparing / "results/table1/cdul.json").read_text())
    index = pd.read_parquet(comparing / "data/index.parquet").query("split == 'train'")
    whole = pd.read_parquet(comparing / "data/global_scores.parquet").set_index("image_id")
    tiles = pd.read_parquet(comparing / "data/local_scores.parquet")
    truth = pd.read_csv(comparing / "truth.csv").set_index("image_id")
    labels, known = [], []
    for image in index["image_id"][index["status"] == "ok"]:
        own = tiles[tiles["image_id"] == image]
        assert len(own) == 9
        best = [own[c].max() if own[c].max() >= 0.2 else own[c].min() for c in MINI_CLASSES]
        labels.append((whole.loc[image, MINI_CLASSES].to_numpy(float) + best) / 2)
        known.append(truth.loc[image, MINI_CLASSES].to_numpy(float))
    quality = 100 * mean_average_precision(np.array(known), np.array(labels))
    assert found["label_mAP"][0] == pytest.approx(quality, abs=0.01)
    assert len(found["label_mAP"]) == 5
    assert found["label_mAP"][0] == found["label_mAP"][1]  # it waits for the second epoch
    assert 0 < found["mAP"] <= 100


def test_cduls_labels_move_towards_the_predictions_after_it_has_waited():
    settings = Cdul(threshold=0.2, difference=0, wait=2, width=1)
    labels = torch.tensor([[0.1, 0.9], [0.5, 0.4]])
    objective = Aligned(labels, np.array([[0.0, 1.0], [1.0, 0.0]]), settings, epochs=2)
    predicted = torch.full((2, 2), 3.0)
    objective.after(predicted, 1)
    assert torch.equal(objective.kept["labels"], labels)
    objective.after(predicted, 2)
    assert (objective.kept["labels"] > labels).all()
    assert objective.kept["quality"].tolist() == [1, 1, 1]


def test_cdul_refuses_views_that_are_no_tiles(comparing: Project):
    done = comparing.run("python", "-m", "experiments.cdul", check=False)
    assert done.returncode == 1
    assert "cam_boxes.views to grid" in done.stderr


@pytest.mark.parametrize(("clip", "known"), [("top", 1), ("soft", 4)])
def test_what_clips_labels_tell_is_a_choice(comparing: Project, clip: str, known: int):
    edit_params(comparing / "experiments/params.yaml", {"baseline.clip": clip})
    comparing.run("python", "-m", "experiments.baseline", "clip_an")
    found = json.loads((comparing / "results/table1/clip_an.json").read_text())
    assert found["observed_per_image"] == known


@pytest.mark.parametrize("method", ["bce", "bce_ls", "asl"])
def test_an_unjudged_label_teaches_a_fully_supervised_method_nothing(method: str):
    settings = Baseline(share=0.1, clip="top", count=1, threshold=0.5, unlikely=0.5, expected=1)
    observed = torch.tensor([[1, -1, 0], [0, 1, -1]])
    logits = torch.zeros(2, 3, requires_grad=True)
    METHODS[method].objective(observed, settings, 0).loss(logits, [0, 1], 1).backward()
    assert ((logits.grad != 0) == (observed != 0)).all()


def test_a_misspelt_setting_is_named(comparing: Project):
    path = comparing / "experiments/params.yaml"
    path.write_text(path.read_text().replace("  width:", "  widht:"))
    done = comparing.run("python", "-m", "experiments.cdul", check=False)
    assert done.returncode == 1
    assert "experiments/params.yaml: `cdul.widht` is no parameter; did you mean" in done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_judged(comparing: Project, method: str):
    comparing.set(train__epochs=2)
    comparing.run("python", "-m", "experiments.baseline", method)
    found = json.loads((comparing / f"results/table1/{method}.json").read_text())
    assert 0 < found["mAP"] <= 100
    assert found["epochs"] == 3
    knows = {"all": 4, "some": 0.4, "one": 1, "clip": 1}[METHODS[method].knows]
    expected = 3 if METHODS[method].absent else knows
    assert found["observed_per_image"] == pytest.approx(expected, abs=0.35)


def test_one_method_runs_nothing_else_and_a_second_time_nothing(comparing: Project):
    assert "experiments" not in comparing.run("dvc", "status").stdout
    show_experiments(comparing.root)
    target = "experiments/dvc.yaml:baseline@bce"
    assert comparing.repro(target) == [target]
    assert comparing.repro(target) == []


@pytest.mark.parametrize("method", ["role", "ll_cp"])
def test_a_stopped_method_goes_on_to_the_same_student(cold_project: Project, method: str):
    """What it keeps for every image, a table or corrected labels, is kept with the weights."""
    with_experiments(cold_project)
    cold_project.set(train__epochs=3)
    command = ["python", "-m", "experiments.baseline", method]
    scratch = cold_project / f".ccd/baseline-{method}"

    def student() -> bytes:
        return next(scratch.glob("*/staging/student.safetensors")).read_bytes()

    cold_project.run(*command)
    undisturbed = student()
    shutil.rmtree(scratch)
    process = subprocess.Popen(command, cwd=cold_project.root, env=cold_project.environment)
    end = time.monotonic() + 60
    while not list(scratch.glob("*/epochs/0002.safetensors")):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (128 + signal.SIGTERM, 0)
    said = cold_project.run(*command).stderr
    assert "resuming after epoch" in said
    assert student() == undisturbed


def test_a_method_without_labels_to_learn_from_says_so(comparing: Project):
    comparing.set(source__labels="data/none")
    comparing.repro("ground_truth")
    done = comparing.run("python", "-m", "experiments.baseline", "bce", check=False)
    assert done.returncode == 1
    assert "source.labels" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_table_has_every_published_row_and_marks_what_was_not_run():
    ran = [(LEVELS[m.knows], m.title) for m in METHODS.values()] + [(LEVELS["clip"], "CCD")]
    lines = pd.DataFrame(
        [
            {"level": level, "method": title, "mAP": 10.0 + seed, "seed": seed}
            for level, title in ran
            for seed in range(2)
        ]
    )
    table = summary(lines)
    assert table.index.is_unique
    assert set(ran) <= set(table.index)
    assert table.loc[(LEVELS["clip"], "CCD"), "published, VOC12"] == CCD[0]
    assert table.loc[(LEVELS["clip"], "CCD"), "mean"] == 10.5
    assert table.loc[(LEVELS["some"], "SARB"), ["mean", "std"]].isna().all()
