"""A head is chosen by images that nothing was fitted to."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from stages.artifacts import INITIAL_LABELS, PSEUDO_LABELS
from stages.storage.tables import Table, read_table, write_table
from stages.training.choice import held_out
from tests.conftest import Project


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5])
def test_a_share_of_the_images_is_held_out_evenly(share: float):
    held = held_out(1000, share)
    assert held.sum() == round(1000 * share)
    assert np.ptp(held.reshape(10, 100).sum(axis=1)) <= 1


def test_a_training_that_destroys_the_features_is_not_kept(project: Project):
    project.set(train__head="likeliest", optimiser__held_out=0.25, optimiser__lr=3.0)
    for stage in ("warmup", "train"):
        project.stage(stage)
    heads = pd.read_csv(project / "data/classifier/heads.csv").set_index("head")
    assert list(heads.index) == ["trained", "refitted", "untrained"]
    assert heads["held_out_loss"].idxmin() == heads["kept"].idxmax() == "untrained"
    assert heads["kept"].sum() == 1
    first, kept = (
        load_file(project / f"data/{name}.safetensors")
        for name in ("weights/student_init", "classifier/student")
    )
    assert all(kept[f"backbone.{name}"].equal(value) for name, value in first.items())


def test_a_share_that_is_no_image_is_named_before_anything_is_trained(project: Project):
    project.set(train__head="likeliest", optimiser__held_out=0.01)
    before = project.digests("data/classifier/*")
    done = project.run("python", "-m", "stages.train", check=False)
    assert done.returncode
    assert "optimiser.held_out in params.yaml: 0.01 of 24 training images" in done.stderr
    assert not {"Traceback", "epoch"} & set(done.stderr.split())
    assert project.digests("data/classifier/*") == before


@pytest.mark.parametrize(
    ("stage", "labels", "made"),
    [
        ("warmup", INITIAL_LABELS, "data/warmup/*"),
        ("train", PSEUDO_LABELS, "data/classifier/history.csv"),
    ],
)
def test_nothing_is_learned_from_what_is_held_out(
    project: Project, monkeypatch: pytest.MonkeyPatch, stage: str, labels: Table, made: str
):
    project.set(train__head="likeliest", optimiser__held_out=0.25)
    project.stage(stage)
    before = project.digests(made)
    monkeypatch.chdir(project.root)
    table, note = read_table(labels)
    held = held_out(len(table), 0.25)
    provenance = {key: note[key] for key in ("index", "teacher", "temperature")}
    for rows, same in ((held, True), (~held, False)):
        changed = table.copy()
        changed.loc[rows, note["classes"]] = 1 - table.loc[rows, note["classes"]]
        write_table(labels, changed, provenance, project.root)
        project.stage(stage)
        assert (project.digests(made) == before) == same
