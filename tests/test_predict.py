"""`ccd predict` runs the student alone; `ccd ladder` shows the evaluation."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.conftest import MINI_CLASSES, Project, wait_for


def ccd(project: Project, *words: str, check: bool = True):
    return project.run("python", "-m", "stages.command.cli", *words, check=check)


def test_predictions_are_those_of_the_evaluation(finished: Project):
    rows = json.loads(ccd(finished, "predict", "photos/test", "--no-calibrate").stdout)
    known = pd.read_parquet(finished / "data/predictions.parquet").set_index("image_id")
    assert len(rows) == 8
    for row in rows:
        expected = known.loc[row["image"].removeprefix("photos/")]
        assert row["probabilities"] == pytest.approx(expected.to_dict(), abs=2e-4)


@pytest.mark.parametrize("form", ["json", "csv", "parquet"])
def test_every_format_can_be_written(project: Project, form: str):
    ccd(project, "predict", "photos/test/00000.jpg", "photos/test/00001.jpg", "-o", f"out.{form}")
    read = {"json": pd.read_json, "csv": pd.read_csv, "parquet": pd.read_parquet}[form]
    table = read(project / f"out.{form}")
    assert table["image"].tolist() == ["photos/test/00000.jpg", "photos/test/00001.jpg"]
    if form != "json":
        assert list(table.columns) == ["image", "status", "error", "labels", *MINI_CLASSES]


def test_what_reaches_the_threshold_is_named_the_likeliest_first(finished: Project):
    words = ("--threshold", "0.3", "--no-calibrate")
    rows = json.loads(ccd(finished, "predict", "photos/test", *words).stdout)
    for row in rows:
        p = row["probabilities"]
        assert {name for name in p if p[name] >= 0.3} == set(row["labels"])
        assert row["labels"] == sorted(row["labels"], key=p.__getitem__, reverse=True)
    assert any(row["labels"] for row in rows)
    assert not any(row["labels"] for row in json.loads(named(finished, "--threshold", "1")))


def named(project: Project, *words: str) -> str:
    return ccd(project, "predict", "photos/test/00000.jpg", *words).stdout


def test_the_likeliest_are_named_however_unlikely(finished: Project):
    (row,) = json.loads(named(finished, "--top", "3"))
    p = row["probabilities"]
    assert row["labels"] == sorted(p, key=p.__getitem__, reverse=True)[:3]


def test_a_terminal_gets_names_and_no_table(finished: Project):
    likeliest, *_ = json.loads(named(finished, "--top", "1"))[0]["labels"]
    text = named(finished, "--top", "1", "-f", "text")
    assert text.startswith(f"photos/test/00000.jpg  {likeliest} 0.")
    assert len(text.splitlines()) == 1
    assert named(finished, "--threshold", "1", "-f", "text").endswith("  –\n")


def test_a_file_is_the_old_one_until_the_new_one_is_whole(project: Project):
    (project / "out.csv").write_text("old")
    assert ccd(project, "predict", "gone.jpg", "-o", "out.csv", check=False).returncode == 1
    assert (project / "out.csv").read_text() == "old"
    ccd(project, "predict", "photos/test/00000.jpg", "-o", "out.csv")
    assert pd.read_csv(project / "out.csv")["status"].tolist() == ["ok"]
    assert not list(project.root.glob(".out.csv*"))


def test_what_is_no_file_is_written_as_it_stands(project: Project):
    (project / "link.csv").symlink_to("out.csv")
    ccd(project, "predict", "photos/test/00000.jpg", "-o", "link.csv")
    assert (project / "link.csv").is_symlink()
    assert pd.read_csv(project / "out.csv")["status"].tolist() == ["ok"]
    words = ("photos/test/00000.jpg", "-f", "csv", "-o", "/dev/full")
    done = ccd(project, "predict", *words, check=False)
    assert done.returncode == 1
    assert done.stderr.endswith("\nccd: /dev/full: No space left on device\n")


def test_a_bad_image_is_named_and_the_others_are_predicted(project: Project):
    (project / "bad.jpg").write_text("nothing")
    done = ccd(project, "predict", "bad.jpg", "photos/test/00000.jpg", check=False)
    assert done.returncode == 1
    rows = json.loads(done.stdout)
    assert [row["status"] for row in rows] == ["unreadable", "ok"]
    assert rows[0]["probabilities"] is None
    assert "bad.jpg: unreadable (no known image format)" in done.stderr


def test_the_student_needs_neither_the_teacher_nor_the_pipeline(project: Project, tmp_path):
    alone = tmp_path / "alone"
    shutil.copytree(project / "data/classifier", alone / "model")
    shutil.copy(project / "photos/test/00000.jpg", alone / "a.jpg")
    shutil.copytree(project / "stages", alone / "stages")
    elsewhere = Project(alone, project.environment)
    done = ccd(elsewhere, "predict", "a.jpg", "--student", "model")
    assert json.loads(done.stdout)[0]["status"] == "ok"


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["gone.jpg"], 1, "gone.jpg is not there"),
        (["photos", "--student", "gone.safetensors"], 1, "gone.json is not there"),
        (["photos", "--student", "data/weights/student_init.safetensors"], 1, "no trained student"),
        (["stages/method"], 1, "ccd: PATHS: no image"),
        (["photos", "-f", "parquet"], 2, "give --output"),
        (["photos", "-o", "out.doc"], 2, "a name that ends in .json, .csv, .parquet or .txt"),
        (["photos", "-o", "gone/out.csv"], 2, "gone/out.csv: there is no folder gone"),
        (["photos", "-f", "csv", "-o", "photos"], 2, "photos is a folder"),
        (["photos", "--threshold", "2"], 2, "--threshold"),
    ],
)
def test_wrong_use_is_one_line(finished: Project, words: list[str], code: int, expected: str):
    done = ccd(finished, "predict", *words, check=False)
    assert done.returncode == code
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_the_ladder_shows_every_rung_and_the_report(finished: Project):
    output = ccd(finished, "ladder").stdout
    ladder = pd.read_csv(finished / "results/ladder.csv")
    for rung in ladder.itertuples():
        assert rung.what in output
        assert f"{rung.mAP:.1f}" in output
    assert "data/report/index.html" in output


@pytest.fixture
def many(project: Project) -> Project:
    """A folder `many` of large photographs, one file by many names."""
    (project / "many").mkdir()
    large = Image.effect_noise((1600, 1200), 60).convert("RGB")
    large.save(project / "one.jpg")
    for number in range(120):
        os.link(project / "one.jpg", project / f"many/{number:03d}.jpg")
    return project


@pytest.mark.parametrize("moment", ["at once", "with torch loaded", "at work"])
def test_an_interrupt_leaves_nothing_and_no_traceback(many: Project, moment: str):
    before = sorted(path.name for path in many.root.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.command.cli", "predict", "many", "-o", "said.csv"],
        cwd=many.root,
        env=many.environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    if moment != "at once":
        maps = Path(f"/proc/{process.pid}/maps")
        wait_for(lambda: "libtorch" in maps.read_text(), process)
        wait = 0.1 if moment == "with torch loaded" else 1.5
        time.sleep(wait)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT), said
    assert "Traceback" not in said
    assert sorted(path.name for path in many.root.iterdir()) == before


def test_memory_does_not_grow_with_the_number_of_photographs(many: Project):
    peaks = []
    for photos in (["many/000.jpg"] * 20, ["many"]):
        command = [sys.executable, "-m", "stages.command.cli", "predict", *photos, "-o", "said.csv"]
        process = subprocess.Popen(command, cwd=many.root, env=many.environment)
        peaks.append(os.wait4(process.pid, 0)[2].ru_maxrss / 1024)
    assert len(pd.read_csv(many / "said.csv")) == 120
    assert peaks[1] < peaks[0] + 60  # MB; a hundred more, decoded, would be six hundred
