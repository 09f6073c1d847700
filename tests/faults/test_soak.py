"""Ten thousand files, one in ten hostile, through all stages: memory, and every file's fate."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from bench.whole import WATCH
from demo.scenes import draw_photo
from tests.conftest import MINI, Project, as_ordinary_processes, edit_params, lay_out
from tests.faults.test_images import BAD
from tests.test_dvc_yaml import STAGES

MOST = 1.3  # of the peak with a tenth of the files
FILES = int(os.environ.get("SOAK_FILES", "10000"))
BRIEF = {"warmup.epochs": 1, "train.epochs": 1, "source.max_bad_share": 0.2}


def collection(root: Path, count: int, warm: dict[str, str]) -> Project:
    """A project of `count` files; the photographs differ in a few pixels."""
    lay_out(root, train=2, test=8)
    edit_params(root / "params.yaml", MINI | BRIEF)
    rng, hostile = np.random.default_rng(0), list(BAD.values())
    drawn = [
        np.asarray(draw_photo(np.random.default_rng([9, n]))[0].resize((72, 64))) for n in range(50)
    ]
    for number in range(count - 10):
        path = root / f"photos/train/{number // 500:03d}/{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if number % 10 == 9:
            path.write_bytes(hostile[number // 10 % len(hostile)])
        else:
            pixels = drawn[number % 50].copy()
            pixels[rng.integers(0, 60), rng.integers(0, 60)] = rng.integers(0, 255, 3)
            Image.fromarray(pixels).save(path, quality=80)
    return as_ordinary_processes(Project(root, warm))


def peaks(project: Project) -> dict[str, int]:
    """The most memory of each stage's process, in kilobytes."""
    found = {}
    for stage in STAGES:
        command = (sys.executable, "-c", WATCH, sys.executable, "-m", f"stages.{stage}")
        done = project.run(*command, CCD_CACHE_GB="0", CCD_WORKERS="0")
        found[stage] = int(done.stdout.splitlines()[-1])
    return found


@pytest.mark.long
def test_ten_times_as_many_files_take_no_more_memory_and_each_is_accounted_for(
    tmp_path: Path, warm: dict[str, str]
):
    few, many = (collection(tmp_path / str(n), n, warm) for n in (FILES // 10, FILES))
    of_few, of_many = peaks(few), peaks(many)
    ratios = {stage: round(of_many[stage] / of_few[stage], 2) for stage in STAGES}
    print(f"peak of {FILES} files / of a tenth:", ratios, "MB:", {
        stage: kb >> 10 for stage, kb in of_many.items()
    })  # fmt: skip
    index = pd.read_parquet(many / "data/index.parquet")
    assert len(index) == FILES
    bad = index["status"] != "ok"
    assert bad.sum() == FILES // 10 - 1
    assert (index.loc[bad, "error"] != "").all()
    predicted = pd.read_parquet(many / "data/predictions.parquet")
    assert predicted["image_id"].tolist() == index.loc[~bad, "image_id"].tolist()
    assert max(ratios.values()) <= MOST, ratios
