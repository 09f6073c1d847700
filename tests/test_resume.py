"""A killed stage goes on: real processes, real signals, the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stages.runtime.errors import UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, execute
from stages.runtime.params import Params
from stages.runtime.resume import _whole, in_blocks, write_durably
from tests.conftest import Project, as_ordinary_processes, wait_for

OUTPUTS = {
    "global_clip": ("data/global_clip.zarr/**/*",),
    "cam_boxes": ("data/cam_boxes.parquet", "data/cam_maps.zarr/**/*"),
    "local_clip": ("data/local_clip.zarr/**/*",),
    "warmup": ("data/warmup/*",),
    "train": ("data/classifier/*",),
}
EPOCHS = ("warmup", "train")
# blocks of a few images and single-threaded work, so that a run has many places to be killed at
SMALL = {"CCD_BLOCK": "1", "CCD_BATCH": "1", "OMP_NUM_THREADS": "1"}
LONG = {
    "train__epochs": 8, "train__stop": "last_epoch", "warmup__epochs": 8,
}  # fmt: skip


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    """Start a command in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=project.root,
        env=project.environment | SMALL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def pieces(project: Project, stage: str) -> list[Path]:
    """The finished pieces of work in the stage's scratch; a running stage may delete old ones."""
    scratch = project / f".ccd/{stage}"
    return [*scratch.glob("*/blocks-of-*/*.npz"), *scratch.glob("*/epochs/*.safetensors")]


def work(project: Project, stage: str) -> dict[Path, int]:
    """The pieces of a stage that does not run, and when they were written."""
    return {file: file.stat().st_mtime_ns for file in pieces(project, stage)}


def pieces_done(project: Project, stage: str) -> int:
    """Finished blocks, or the number of the last finished epoch; only two of those are kept."""
    files = pieces(project, stage)
    epochs = (int(file.name.partition(".")[0]) for file in files)
    return max(epochs, default=0) if stage in EPOCHS else len(files)


def halt_at_work(project: Project, stage: str, least: int, process: subprocess.Popen[str]) -> None:
    """Freeze the process group once at least so many pieces of work are done, but not all."""
    wait_for(lambda: pieces_done(project, stage) >= least, process)
    os.killpg(process.pid, signal.SIGSTOP)


def end_group(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> str:
    os.killpg(process.pid, number)
    os.killpg(process.pid, signal.SIGCONT)
    return process.communicate()[0]


@pytest.fixture
def warm_ready(project: Project) -> Project:
    """A project with many epochs to come, and nothing in its scratch."""
    project.set(**LONG)
    shutil.rmtree(project / ".ccd")
    return project


@pytest.fixture
def ready(warm_ready: Project) -> Project:
    """The same, whose stages can be killed."""
    return as_ordinary_processes(warm_ready)


@pytest.fixture(scope="module")
def reference(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The undisturbed run with the same settings."""
    root = tmp_path_factory.mktemp("reference") / "project"
    shutil.copytree(finished.root, root)
    project = Project(root, finished.environment | SMALL)
    project.set(**LONG)
    for stage in (
        "global_clip",
        "bias",
        "warmup",
        "cam_boxes",
        "local_clip",
        "fuse_labels",
        "train",
    ):
        project.stage(stage)
    return project


@pytest.mark.parametrize("stage", ["local_clip", "train"])
def test_killed_at_random_moments_a_stage_ends_with_the_bytes_of_an_undisturbed_run(
    reference: Project, tmp_path: Path, stage: str
):
    shutil.copytree(reference.root, tmp_path / "project")
    warm = Project(tmp_path / "project", reference.environment)
    project = as_ordinary_processes(warm)
    shutil.rmtree(project / f".ccd/{stage}")
    draw = random.Random(stage)
    kept: dict[Path, int] = {}
    done = 0
    for alone in (True, False):  # once the stage alone, once with its DVC
        command = (
            ["python", "-m", f"stages.{stage}"] if alone else ["dvc", "repro", "-f", "-s", stage]
        )
        process = start(project, *command)
        halt_at_work(project, stage, done + 1, process)
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(draw.uniform(0, 0.03))
        output = end_group(process)
        assert process.returncode == -signal.SIGKILL
        assert alone or "resuming" in output
        now, done = work(project, stage), pieces_done(project, stage)
        if stage in EPOCHS:  # of the epochs the latest two are kept
            kept = {file: when for file, when in kept.items() if file in now}
        assert kept.items() <= now.items(), "a finished piece was touched"
        kept = now
    last = warm.run("dvc", "repro", "-f", "-s", stage, **SMALL)
    assert "resuming" in last.stderr + last.stdout
    after = work(project, stage)
    assert {f: t for f, t in kept.items() if f in after}.items() <= after.items()
    if stage not in EPOCHS:
        assert kept.keys() <= after.keys()
    assert project.digests(*OUTPUTS[stage]) == reference.digests(*OUTPUTS[stage])
    assert "up to date" in warm.run("dvc", "status", stage).stdout


def test_a_signal_finishes_the_block_and_says_how_to_go_on(warm_ready: Project, ready: Project):
    process = start(ready, "python", "-m", "stages.global_clip")
    halt_at_work(ready, "global_clip", 1, process)
    before = (ready / "data/global_clip.zarr/zarr.json").read_bytes()
    output = end_group(process, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    assert "blocks are done and kept. `dvc repro` goes on from there." in output
    assert "Traceback" not in output
    assert (ready / "data/global_clip.zarr/zarr.json").read_bytes() == before
    assert "resuming" in warm_ready.stage("global_clip", **SMALL).stderr


def test_a_signal_to_training_finishes_the_epoch(ready: Project):
    process = start(ready, "python", "-m", "stages.train")
    halt_at_work(ready, "train", 1, process)
    output = end_group(process, signal.SIGINT)
    assert process.returncode == 130
    assert "of 8 epochs are done and kept" in output


def test_an_orphan_of_a_killed_dvc_is_named_and_its_work_is_used(
    warm_ready: Project, ready: Project
):
    process = start(ready, "dvc", "repro", "-f", "-s", "train")
    halt_at_work(ready, "train", 1, process)
    os.kill(process.pid, signal.SIGKILL)  # DVC alone; its stage lives on
    process.wait()
    second = warm_ready.run("dvc", "repro", "-f", "-s", "train", check=False, **SMALL)
    os.killpg(process.pid, signal.SIGKILL)
    assert second.returncode
    assert re.search(r"already running here: process \d+ on ", second.stderr + second.stdout)
    third = warm_ready.run("dvc", "repro", "-f", "-s", "train", **SMALL)
    assert "resuming after epoch" in third.stderr + third.stdout


@pytest.mark.parametrize("edit", ["parameter", "code", "input"])
def test_what_was_edited_meanwhile_publishes_nothing(
    warm_ready: Project, ready: Project, edit: str
):
    before = ready.digests("data/classifier/*")
    by_dvc = edit == "parameter"
    command = ["dvc", "repro", "-f", "-s", "train"] if by_dvc else ["python", "-m", "stages.train"]
    process = start(ready, *command)
    halt_at_work(ready, "train", 1, process)
    files = {
        "parameter": ready / "params.yaml",
        "code": ready / "stages/training/loop.py",
        "input": ready / "data/pseudo_labels.parquet",
    }
    content = files[edit].read_bytes()
    if edit == "parameter":
        ready.set(train__consistency=0.5)
    else:
        files[edit].write_bytes(content + b"\n")
    output = end_group(process, signal.SIGCONT)
    assert process.returncode
    assert "changed while the stage was running; nothing was published" in output
    assert ready.digests("data/classifier/*") in ({}, before)
    files[edit].write_bytes(content)
    again = warm_ready.stage("train", **SMALL)
    assert "resuming after epoch 8 of 8" in again.stderr


def test_a_parameter_misspelt_meanwhile_publishes_nothing_and_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.root)

    def run(params: Params, job: Job) -> None:
        text = (project / "params.yaml").read_text()
        (project / "params.yaml").write_text(text.replace("consistency:", "consistence:"))

    with pytest.raises(UserError, match=r"did you mean `train.consistency`\?"):
        execute("train", run, partial(declaration, "train"))


def test_another_parameter_starts_afresh_and_drops_the_old_scratch(warm_ready: Project):
    warm_ready.stage("train", **SMALL)
    old = set(work(warm_ready, "train"))
    assert old
    warm_ready.set(train__consistency=0.5)
    assert "resuming" not in warm_ready.stage("train", **SMALL).stderr
    assert not any(file.exists() for file in old)


def test_a_damaged_block_is_computed_again(warm_ready: Project):
    warm_ready.stage("global_clip", **SMALL)
    expected = warm_ready.digests(*OUTPUTS["global_clip"])
    block = sorted(work(warm_ready, "global_clip"))[1]
    block.write_bytes(block.read_bytes()[:-30])
    assert "is damaged; computing it again" in warm_ready.stage("global_clip", **SMALL).stderr
    assert warm_ready.digests(*OUTPUTS["global_clip"]) == expected


def test_no_flipped_bit_of_a_block_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    job, rows = Job("bias", "x"), np.arange(3.0, dtype=np.float32)
    file = next(iter(in_blocks(job, 3, 3, "rows", lambda _: iter([{"x": rows}])).files))
    content = file.read_bytes()
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        file.write_bytes(flipped)
        if _whole(file, 3):
            assert np.load(file)["x"].tolist() == rows.tolist()


def test_a_damaged_epoch_costs_that_epoch_alone(warm_ready: Project):
    warm_ready.stage("train", **SMALL)
    expected = warm_ready.digests(*OUTPUTS["train"])
    newest = sorted(work(warm_ready, "train"))[-1]
    newest.write_bytes(newest.read_bytes()[:-30])
    output = warm_ready.stage("train", **SMALL).stderr
    assert "going back one epoch" in output
    assert "resuming after epoch 7 of 8" in output
    assert warm_ready.digests(*OUTPUTS["train"]) == expected


def test_a_full_disk_publishes_nothing_and_keeps_the_work(ready: Project):
    """A limit on the size of files stands for the disk: writing fails with an OSError too."""
    before = ready.digests("data/local_clip.zarr/**/*")
    limited = "ulimit -f 8; exec python -m stages.warmup"
    done = ready.run("bash", "-c", f"trap '' XFSZ; {limited}", check=False, **SMALL)
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "nothing was published" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((ready / "data").rglob("*.partial"))
    assert ready.digests("data/local_clip.zarr/**/*") == before
    ready.stage("warmup", **SMALL)


def test_blocks_are_assembled_in_order_whatever_their_size(tmp_path, monkeypatch):
    import numpy as np

    monkeypatch.chdir(tmp_path)
    calls = []

    def compute(blocks: list[range]):
        for rows in blocks:
            calls.append(rows)
            yield {"x": np.arange(rows.start, rows.stop)}

    for size in (1, 3, 7, 100):
        job = Job("demo", f"f{size}")
        found = in_blocks(job, 7, size, "rows", compute).of("x")
        assert np.concatenate(list(found)).tolist() == list(range(7))
        before = len(calls)
        in_blocks(job, 7, size, "rows", compute)
        assert len(calls) == before


def test_a_durable_file_is_whole_or_absent(tmp_path):
    write_durably(tmp_path / "a" / "b", b"one")
    write_durably(tmp_path / "a" / "b", b"two")
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["b"]
    assert (tmp_path / "a" / "b").read_bytes() == b"two"
