"""The benchmark runs, on small sizes; its figures mean nothing then."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from stages.command.deps import ROOT


def test_the_benchmark_of_speed_runs_on_a_small_size(tmp_path: Path):
    results = tmp_path / "results.json"
    options = {"rows": "abcd", "size": 64, "images": 8, "views": 2, "rounds": 1}
    options |= {"precision": "float32"}
    command = [f"--{name}={value}" for name, value in (options | {"results": results}).items()]
    subprocess.run([sys.executable, "-m", "bench", *command], cwd=ROOT, check=True)
    found = json.loads(results.read_text())
    assert [row["row"][0] for row in found["rows"]] == ["b", "a", "a", "b", "b", "c", "d"]
    assert all(row["ratio"] > 0 for row in found["rows"])
