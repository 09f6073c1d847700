"""Outputs that may not be written, too little memory, artifacts of others, edits after a crash."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from stages.runtime.errors import UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import execute
from tests.conftest import MINI_CLASSES, Project, as_ordinary_processes, wait_for
from tests.faults.conftest import refusal
from tests.faults.test_process import QUICK, WRITING, kept, mend_lock_of_dvc, strays
from tests.test_dvc_yaml import paths

# root may write everywhere; without this capability it is as others are
AS_OTHERS = ("setpriv", "--bounding-set", "-dac_override") if os.geteuid() == 0 else ()
MADE_BY_A_TEACHER = {
    "bias": ["data/class_text.zarr", "data/global_clip.zarr"],
    "fuse_labels": ["data/class_text.zarr", "data/local_clip.zarr", "data/initial_labels.parquet"],
}


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=[] if s in QUICK else pytest.mark.long) for s in WRITING]
)
def test_outputs_that_may_not_be_written_stay_and_are_named(project: Project, stage: str):
    before, cold = kept(project), as_ordinary_processes(project)
    folders = {(project / out).parent for out in paths(stage, "outs", "metrics", "plots")}
    for folder in folders:
        folder.chmod(0o555)
    said = refusal(cold.run(*AS_OTHERS, "python", "-m", f"stages.{stage}", check=False))
    for folder in folders:
        folder.chmod(0o755)
    assert "Permission denied" in said
    assert "nothing was published" in said
    assert kept(project) == before
    assert not strays(project)
    project.stage(stage)
    assert kept(project) == before


@pytest.mark.parametrize(
    ("stage", "advice"),
    [
        ("index", "source.max_pixels in params.yaml"),
        ("global_clip", "set CCD_BATCH lower"),
        ("train", "set CCD_MICRO_BATCH"),
    ],
)
def test_a_stage_short_of_memory_says_what_takes_less(
    project: Project, monkeypatch: pytest.MonkeyPatch, stage: str, advice: str
):
    monkeypatch.chdir(project.root)
    before = kept(project)

    def run(*_: object) -> None:
        bytearray(1 << 60)

    with pytest.raises(UserError, match="not enough memory") as said:
        execute(stage, run, partial(declaration, stage))
    assert advice in str(said.value)
    assert kept(project) == before


def test_a_photograph_that_does_not_fit_into_memory_is_a_row_of_the_index(project: Project):
    """270 MB of pixels for a process that may have 200 MB more than it takes to start."""
    Image.new("RGB", (10_000, 9_000)).save(project / "photos/train/large.png")
    script = (
        "import resource, runpy, PIL.Image, stages.index\n"
        "has = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (has + (200 << 20),) * 2)\n"
        "runpy.run_module('stages.index', run_name='__main__')\n"
    )
    cold = as_ordinary_processes(project)
    done = cold.run(sys.executable, "-c", script, OMP_NUM_THREADS="1")
    assert "1 of them unusable" in done.stderr
    index = pd.read_parquet(project / "data/index.parquet").set_index("image_id")
    assert index.loc["train/large.png", "error"] == "does not fit into memory"


@pytest.fixture(scope="module")
def of_another_teacher(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The same photographs and parameters, another teacher."""
    root = tmp_path_factory.mktemp("another") / "project"
    shutil.copytree(finished.root, root)
    project = Project(root, finished.environment)
    weights = project / "teacher/open_clip_model.safetensors"
    tensors = load_file(weights)
    tensors["logit_scale"] = tensors["logit_scale"] + 0.1
    save_file(tensors, weights)
    project.repro()
    return project


def test_artifacts_of_another_teacher_are_refused_by_the_stage_and_made_again_by_dvc(
    project: Project, of_another_teacher: Project
):
    before = kept(project)
    for stage, deps in MADE_BY_A_TEACHER.items():
        for dep in deps:
            put(of_another_teacher / dep, project / dep)
            said = refusal(project.stage(stage, check=False))
            assert re.search("two teachers|other boxes|do not belong together", said), dep
            project.repro()
            assert kept(project) == before


def put(source: Path, target: Path) -> None:
    """Copy a file or a folder over another."""
    if source.is_file():
        shutil.copy(source, target)
    else:
        shutil.rmtree(target)
        shutil.copytree(source, target)


def rename_a_class(project: Project) -> None:
    for name in ("classes.txt", "truth.csv"):
        path = project / name
        path.write_text(path.read_text().replace(MINI_CLASSES[0], "hedgehog"))


def replace_a_photograph(project: Project) -> None:
    Image.new("RGB", (80, 90), "teal").save(project / "photos/train/00003.jpg")


def edit_code(project: Project) -> None:
    path = project / "stages/images/crops.py"
    path.write_text(path.read_text() + "\n")


def edit_a_parameter(project: Project) -> None:
    project.set(global_clip__view_size=96)


@pytest.mark.long
@pytest.mark.parametrize(
    "edit", [rename_a_class, replace_a_photograph, edit_code, edit_a_parameter]
)
def test_what_is_edited_between_crash_and_rerun_counts_as_if_nothing_had_crashed(
    laid_out: Path, finished: Project, tmp_path: Path, edit: Callable[[Project], None]
):
    crashed, calm = (Project(tmp_path / name, finished.environment) for name in ("crashed", "calm"))
    for one in (crashed, calm):
        shutil.copytree(laid_out, one.root)
    crashed.repro("index", "class_text")  # and so the teacher's weights
    cold = as_ordinary_processes(crashed)
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=cold.root,
        env=cold.environment | {"CCD_BLOCK": "1", "CCD_BATCH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    blocks = crashed / ".ccd/global_clip"
    wait_for(lambda: len(list(blocks.glob("*/blocks-of-*/*.npz"))) > 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    mend_lock_of_dvc(crashed)
    for one in (crashed, calm):
        edit(one)
        one.repro()
    assert kept(crashed) == kept(calm)
    assert not strays(crashed)
