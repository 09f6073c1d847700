"""`ccd inspect`: one image, as every artifact has it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.artifacts import THRESHOLDS
from stages.command.inspect import known_of, picture
from stages.runtime.errors import UserError
from stages.storage.tables import read_table, write_table
from tests.conftest import MINI_CLASSES, Project


def column(project: Project, table: str, image: str) -> pd.Series:
    frame = pd.read_parquet(project / f"data/{table}.parquet").set_index("image_id")
    return frame.loc[image, list(MINI_CLASSES)].astype(float)


def an_image(project: Project, split: str) -> str:
    index = pd.read_parquet(project / "data/index.parquet")
    return str(index.loc[index["split"] == split, "image_id"].iloc[0])


def test_of_a_training_image_every_label_and_view_is_the_artifacts(
    finished: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.root)
    image = an_image(finished, "train")
    known = known_of(image)
    assert list(known.labels)[:4] == ["whole image", "initial", "local", "pseudo"]
    for name, table in (("initial", "initial_labels"), ("pseudo", "pseudo_labels")):
        expected = column(finished, table, image)
        assert np.allclose(known.labels[name], expected[known.labels.index])
    boxes = pd.read_parquet(finished / "data/cam_boxes.parquet")
    own = boxes[boxes["image_id"] == image]
    assert known.views["class"].tolist() == own["class"].tolist()
    assert known.views[["x0", "y1"]].to_numpy().tolist() == own[["x0", "y1"]].to_numpy().tolist()
    scores = pd.read_parquet(finished / "data/local_scores.parquet")
    best = scores.loc[scores["image_id"] == image, list(MINI_CLASSES)].astype(float).iloc[0]
    assert known.views["says"].iloc[0].startswith(f"{best.idxmax()} {best.max():.2f}, ")


def test_of_a_test_image_the_student_says_what_predict_says(
    finished: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.root)
    image = an_image(finished, "test")
    known = known_of(f"photos/{image}")
    assert str(known.row["image_id"]) == image
    done = finished.run("ccd", "predict", f"photos/{image}", "--format", "csv")
    predicted = pd.read_csv(io.StringIO(done.stdout)).iloc[0]
    for name, said in known.labels["student"].items():
        assert said == pytest.approx(predicted[name], abs=2e-3)
    assert "pseudo" not in known.labels
    assert known.views.empty


def test_the_picture_differs_from_the_photograph_along_the_boxes_alone(
    finished: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.root)
    known = known_of(an_image(finished, "train"))
    known = known._replace(views=known.views.head(1).assign(**{"class": ""}))
    drawn = np.asarray(Image.open(io.BytesIO(picture(known, "PNG"))))
    plain = np.asarray(Image.open(known.row["path"]).convert("RGB"))
    changed = (drawn != plain).any(axis=-1)
    x0, y0, x1, y1 = known.views[["x0", "y0", "x1", "y1"]].iloc[0]
    assert changed.any()
    inside = np.zeros_like(changed)
    inside[y0:y1, x0:x1] = True
    inside[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] = False
    assert not changed[~inside].any()


def test_another_image_is_refused_with_some_that_there_are(
    finished: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(finished.root)
    with pytest.raises(UserError, match=r"nowhere.jpg is no image of data/index.parquet, which"):
        known_of("nowhere.jpg")


def test_cuts_of_other_classes_are_refused_in_one_line(project: Project):
    path = project / "data/thresholds.parquet"
    cuts = pd.read_parquet(path)
    of = read_table(replace(THRESHOLDS, path=path))[1]
    kept: Any = {
        key: value for key, value in of.items() if key not in ("schema", "columns", "sha256")
    }
    cuts.loc[0, "class"] = "comet"
    write_table(THRESHOLDS, cuts, kept, Path(project.root))
    done = project.run("ccd", "inspect", an_image(project, "test"), check=False)
    assert done.returncode == 1
    assert done.stderr == "ccd: data/thresholds.parquet is of other classes: run `dvc repro`\n"


def test_what_is_shown_and_written_in_a_terminal(project: Project):
    image = an_image(project, "train")
    done = project.run("ccd", "inspect", image, "--picture", "seen.png")
    assert done.stdout.startswith(f"{image}: train, ")
    assert "seen.png has its" in done.stdout
    assert Image.open(project / "seen.png").format == "PNG"
    (project / "data/local_scores.parquet").unlink()
    assert "says" in project.run("ccd", "inspect", image).stdout
    (project / "photos/train/cut.jpg").write_bytes(b"")
    project.set(source__max_bad_share=1.0)
    project.stage("index")
    for table in ("*_labels", "*_scores", "cam_boxes", "predictions", "*truth", "answers"):
        for path in Path(project.root).glob(f"data/{table}.parquet"):  # of the index before
            path.unlink()
    done = project.run("ccd", "inspect", "train/cut.jpg", "--picture", "no.png", check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "train/cut.jpg is unreadable: the file is empty" in done.stderr
    done = project.run("ccd", "inspect", image, "--picture", "seen.gif", check=False)
    assert done.returncode == 2
    assert not (project / "seen.gif").exists()
