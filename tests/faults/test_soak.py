"""Ten thousand files, one in ten hostile, through all stages: memory, and every file's fate."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from demo.scenes import draw_photo
from tests.conftest import MINI, Project, edit_params, lay_out
from tests.faults.test_images import BAD
from tests.test_dvc_yaml import STAGES

FILES = int(os.environ.get("SOAK_FILES", "10000"))
MOST = 20 + FILES / 250  # MB more than with a tenth of the files: blocks that are full, and tables
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
    return Project(root, warm)


# what a process begins with, the libraries, does not count
WATCH = """
import re, runpy, sys
def megabytes(key):
    return int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
before = megabytes("VmRSS")
try: runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
except SystemExit as end: assert not end.code
print(megabytes("VmHWM") - before)
"""


def peaks(project: Project) -> dict[str, int]:
    """The most memory that each stage took, in MB."""
    (project / "watch.py").write_text(WATCH)
    found = {}
    for stage in STAGES:
        command = ("python", "-m", "watch", f"stages.{stage}")
        done = project.run(*command, CCD_CACHE_GB="0", CCD_WORKERS="0")
        found[stage] = round(float(done.stdout.split()[-1]))
    return found


@pytest.mark.long
def test_ten_times_as_many_files_take_no_more_memory_and_each_is_accounted_for(
    tmp_path: Path, warm: dict[str, str]
):
    few, many = (collection(tmp_path / str(n), n, warm) for n in (FILES // 10, FILES))
    of_few, of_many = peaks(few), peaks(many)
    print({stage: (of_few[stage], of_many[stage]) for stage in STAGES})
    index = pd.read_parquet(many / "data/index.parquet")
    assert len(index) == FILES
    bad = index["status"] != "ok"
    assert bad.sum() == FILES // 10 - 1
    assert (index.loc[bad, "error"] != "").all()
    predicted = pd.read_parquet(many / "data/predictions.parquet")
    assert predicted["image_id"].tolist() == index.loc[~bad, "image_id"].tolist()
    assert {stage for stage in STAGES if of_many[stage] - of_few[stage] > MOST} == set()
