"""`ccd export`: one ONNX file that says what `ccd predict` says, without torch."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.runtime.code import ROOT
from tests.conftest import MINI_CLASSES, Project

README = (ROOT / "README.md").read_text()
WITHOUT_TORCH = README.partition("without torch")[2].partition("```py\n")[2].partition("```")[0]


@pytest.fixture(scope="module")
def exported(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("exported") / "classifier.onnx"
    finished.run("ccd", "export", str(place))
    return place


def test_it_says_what_predict_says_of_every_photograph(finished: Project, exported: Path):
    """By the lines of the README, in a process that has no torch."""
    seen = Image.open(finished / "photos/test/00000.jpg").convert("RGBA")
    seen.putalpha(Image.linear_gradient("L").resize(seen.size))
    seen.save(exported.parent / "seen through.png")
    photos = ("photos", f"{exported.parent}/seen through.png")
    finished.run("ccd", "predict", *photos, "-o", f"{exported.parent}/said.parquet")
    said = pd.read_parquet(exported.parent / "said.parquet")
    said = said[said["status"] == "ok"]
    dump = "\nimport sys; np.save('found.npy', probabilities); assert 'torch' not in sys.modules\n"
    code = WITHOUT_TORCH.replace('["a.jpg", "b.jpg"]', "sys.argv[1:]") + dump
    files = [str(finished / name) for name in said["image"]]
    assert len(files) > 30
    command = [sys.executable, "-c", f"import sys\n{code}", *files]
    done = subprocess.run(command, cwd=exported.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(exported.parent / "found.npy")
    assert found.shape == (len(files), len(MINI_CLASSES))
    assert found == pytest.approx(said[list(MINI_CLASSES)].to_numpy(), abs=1e-4)
    named = [ast.literal_eval(line) for line in done.stdout.splitlines()]
    assert [sorted(names) for names in named] == [sorted(names) for names in said["labels"]]


def test_names_and_cuts_are_inside(finished: Project, exported: Path):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    notes = session.get_modelmeta().custom_metadata_map
    cuts = pd.read_parquet(finished / "data/thresholds.parquet")
    assert tuple(json.loads(notes["classes"])) == MINI_CLASSES
    assert json.loads(notes["thresholds"]) == pytest.approx(cuts["threshold"], abs=1e-5)
    assert notes["size"] == "64"


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["photos"], 2, "photos is a folder"),
        (["gone/a.onnx"], 2, "there is no folder gone"),
        (["a.onnx", "--student", "gone.safetensors"], 1, "gone.json is not there"),
        (["a.onnx", "--student", "README.md"], 1, "README.json is not there"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_no_file(
    finished: Project, words: list[str], code: int, why: str
):
    done = finished.run("ccd", "export", *words, check=False)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (finished / "a.onnx").exists()
