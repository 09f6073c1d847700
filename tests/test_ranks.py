"""Several processes at a stage give what one gives; one of them killed loses nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.conftest import Project

ONE_THREAD = {"OMP_NUM_THREADS": "1", "CCD_BLOCK": "4"}
OUTPUTS = {
    "global_clip": "data/global_clip.zarr/**/*",
    "cam_boxes": "data/cam_*",
    "local_clip": "data/local_clip.zarr/**/*",
    "evaluate": "data/predictions.parquet",
}


def anew(project: Project, stage: str, **environment: str) -> str:
    """Run a stage with nothing kept of a run before."""
    shutil.rmtree(project / ".ccd" / stage, ignore_errors=True)
    return project.stage(stage, **ONE_THREAD, **environment).stderr


@pytest.mark.parametrize("stage", OUTPUTS)
def test_two_ranks_and_two_workers_leave_the_bytes_of_one_process(
    cold_project: Project, stage: str
):
    anew(cold_project, stage, CCD_WORKERS="0")
    alone = cold_project.digests(OUTPUTS[stage])
    assert alone
    anew(cold_project, stage, CCD_WORKERS="2", CCD_DEVICES="2")
    assert cold_project.digests(OUTPUTS[stage]) == alone


@pytest.mark.parametrize("parting", [{"CCD_DEVICES": "2"}, {"CCD_MICRO_BATCH": "3"}])
def test_a_parted_batch_trains_the_same_student(cold_project: Project, parting: dict[str, str]):
    """With frozen batch norm, whatever parts the batch of 7 images; the last of them has 3."""
    cold_project.set(student__batch_norm="frozen", optimiser__batch=7, train__epochs=2)
    anew(cold_project, "warmup")
    weights = []
    for how in ({}, parting):
        assert "mAP against the labels" in anew(cold_project, "train", **how)
        weights.append(load_file(cold_project / "data/classifier/student.safetensors"))
    warm = load_file(cold_project / "data/warmup/student.safetensors")
    one, many = weights
    moved = {name: float((one[name] - warm[name]).abs().max()) for name in one}
    assert max(moved.values()) > 1e-3
    for name in one:
        assert float((one[name] - many[name]).abs().max()) < 1e-5 + 0.02 * moved[name]


def test_statistics_of_a_whole_batch_cannot_be_had_on_several_processors(cold_project: Project):
    for how in ({"CCD_DEVICES": "2"}, {"CCD_MICRO_BATCH": "3"}):
        done = cold_project.stage("warmup", check=False, **how)
        assert done.returncode == 1
        assert "student.batch_norm" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_killed_rank_is_named_and_the_others_blocks_are_kept(cold_project: Project):
    before = cold_project.digests(OUTPUTS["local_clip"])
    shutil.rmtree(cold_project / ".ccd/local_clip")
    command = ["python", "-m", "stages.local_clip"]
    environment = cold_project.environment | {"CCD_DEVICES": "2", "CCD_BLOCK": "1"}
    process = subprocess.Popen(
        command, cwd=cold_project.root, env=environment, stderr=subprocess.PIPE, text=True
    )
    scratch = cold_project / ".ccd/local_clip"
    wait_for(lambda: len(list(scratch.glob("*/blocks-of-1/*.npz"))) >= 4)
    victim = next(pid for pid in descendants(process.pid) if b"RANK=1\0" in environment_of(pid))
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 1 of 2 ended with SIGKILL" in said
    assert cold_project.digests(OUTPUTS["local_clip"]) == before
    kept = {file: file.stat().st_mtime_ns for file in scratch.glob("*/blocks-of-1/*.npz")}
    assert kept
    cold_project.stage("local_clip", CCD_DEVICES="2", CCD_BLOCK="1")
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())


def test_a_rank_killed_in_training_ends_the_run_and_the_epochs_are_kept(cold_project: Project):
    cold_project.set(student__batch_norm="frozen", warmup__epochs=200)
    shutil.rmtree(cold_project / ".ccd/warmup")
    process = subprocess.Popen(
        ["python", "-m", "stages.warmup"],
        cwd=cold_project.root,
        env=cold_project.environment | {"CCD_DEVICES": "2"},
        stderr=subprocess.PIPE,
        text=True,
    )
    epochs = cold_project / ".ccd/warmup"
    wait_for(lambda: len(list(epochs.glob("*/epochs/*.safetensors"))) >= 1)
    victim = next(pid for pid in descendants(process.pid) if b"RANK=0\0" in environment_of(pid))
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.search("rank [01] of 2 ended with", said)
    assert list(epochs.glob("*/epochs/*.safetensors"))


def test_another_launcher_places_the_ranks_as_slurm_does(cold_project: Project, tmp_path: Path):
    """A stand-in for srun: two tasks on one node, with the variables that SLURM sets."""
    srun = tmp_path / "srun"
    srun.write_text(
        "#!/bin/bash\nexport SLURM_NTASKS=2 SLURM_NNODES=1\n"
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & \n'
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@"; first=$?\nwait $! && exit $first\n'
    )
    srun.chmod(0o755)
    anew(cold_project, "global_clip")
    alone = cold_project.digests(OUTPUTS["global_clip"])
    anew(cold_project, "global_clip", CCD_LAUNCH=str(srun))
    assert cold_project.digests(OUTPUTS["global_clip"]) == alone
    done = cold_project.stage("global_clip", check=False, CCD_LAUNCH="false")
    assert done.returncode == 1
    assert "false ended with code 1" in done.stderr


def wait_for(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


def environment_of(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def test_a_rank_takes_its_place_from_the_launcher(monkeypatch):
    from stages import ranks

    assert ranks.place() == (0, 1, 0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")  # in a batch job that srun did not start
    assert ranks.place() == (0, 1, 0, 1)
    for name, value in {"NTASKS": "16", "LOCALID": "3", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv(ranks.LAUNCHED, "1")
    assert ranks.place() == (3, 16, 3, 8)
    assert not ranks.wanted()


def test_the_batch_is_a_power_of_two_that_takes_half_of_the_memory():
    from stages.machine import largest_batch

    gib = 1 << 30
    assert largest_batch(24 * gib, 3 * gib, 3 * gib + gib // 2) == 16
    assert largest_batch(24 * gib, 20 * gib, 40 * gib) == 1
    assert largest_batch(1 << 50, 1, 2) == 256
    for one in np.random.default_rng(0).integers(1, 1 << 30, 50).tolist():
        batch = largest_batch(8 * gib, one, 2 * one)
        assert batch == 1 or one * (batch + 1) <= 4 * gib or batch == 256
