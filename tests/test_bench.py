"""The benchmark runs, on a tiny model and small sizes; its figures mean nothing then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest

from bench import __main__ as bench
from bench import engines, predicting
from tests.conftest import TINY_CLIP


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[str]:
    """A model that open_clip knows by name."""
    (tmp_path / "tiny-bench.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(tmp_path)
    yield "tiny-bench"
    open_clip.factory._MODEL_CONFIGS.pop("tiny-bench", None)


@pytest.mark.slow
def test_the_benchmark_of_speed_runs_on_a_small_size(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CCD_DEVICE", "cpu")
    sizes = {"size": 64, "images": 16, "views": 2, "rounds": 1, "most": 0}
    results = tmp_path / "results.json"
    bench.main(model=tiny, precision="float32", rows="abcd", results=results, **sizes)
    found = json.loads(results.read_text())
    assert [row["row"][0] for row in found["rows"]] == ["b", "a", "a", "b", "b", "c", "d", "d"]
    assert all(row["ratio"] > 0 for row in found["rows"])


@pytest.mark.slow
def test_engines_are_compared_each_in_a_process_of_its_own(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(engines, "TOWERS", {f"{tiny}, large": (96, 1)})
    found = list(engines.compare_engines(tmp_path / "engines", rounds=1, seconds=0.1))
    assert [row["row"] for row in found] == [
        f"i: {tiny} at 96, {own} ÷ {other}"
        for own in ("pipeline", "pipeline with onnxruntime")
        for other in ("ONNX Runtime", "plain torch")
    ]
    assert all(row["ratio"] > 0 for row in found)


@pytest.mark.slow
def test_both_ways_to_ask_a_student_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CCD_DEVICE", "cpu")
    monkeypatch.setattr(predicting, "STUDENTS", {"resnet18": (64, 20)})
    found = list(predicting.compare_predictions(tmp_path / "students", rounds=1))
    assert [row["row"] for row in found] == [
        "j: predict by torch, resnet18 at 64, ÷ bare student",
        "j: predict by export, resnet18 at 64, ÷ bare student",
        "j: predict by export, resnet18 at 64, ÷ bare export",
    ]
    assert all(float(str(row["ratio"])) > 0 for row in found)
