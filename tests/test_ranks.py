"""Several processes at a stage give what one gives; one of them killed loses nothing."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from stages.models.student import StudentConfig, build_student
from stages.models.weights import load_weights
from stages.runtime.errors import UserError
from stages.training.network import prepare_batch_norm
from tests.conftest import Project, as_ordinary_processes, wait_for

ONE_THREAD = {"OMP_NUM_THREADS": "1", "CCD_BLOCK": "4"}
EMBEDDINGS = "data/local_clip.zarr/**/*"


@pytest.fixture
def both(project: Project) -> tuple[Project, Project]:
    """One project twice: with stages that start at once, and as ordinary processes."""
    return project, as_ordinary_processes(project)


def anew(project: Project, stage: str, **environment: str) -> str:
    """Run a stage with nothing kept of a run before."""
    shutil.rmtree(project / ".ccd" / stage, ignore_errors=True)
    return project.stage(stage, **ONE_THREAD, **environment).stderr


def started(project: Project, stage: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["python", "-m", f"stages.{stage}"],
        cwd=project.root,
        env=project.environment | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def shown_of(said: str, stage: str) -> int:
    """How many units of work a stage has shown as done."""
    return max(int(done) for done in re.findall(rf"{stage}: (\d+)/\d+ ", said))


def test_two_ranks_and_two_workers_leave_the_bytes_of_one_process(both: tuple[Project, Project]):
    (warm, cold), stage = both, "local_clip"
    before = anew(warm, stage, CCD_WORKERS="0")
    alone = warm.digests(EMBEDDINGS)
    assert alone
    said = anew(cold, stage, CCD_WORKERS="2", CCD_DEVICES="2")
    assert cold.digests(EMBEDDINGS) == alone
    share, of_all = (shown_of(text, stage) for text in (said, before))
    assert 0 < share < of_all  # the first rank shows its own


@pytest.mark.parametrize("parting", [{"CCD_DEVICES": "2"}, {"CCD_MICRO_BATCH": "3"}])
def test_a_parted_batch_trains_the_same_student(
    both: tuple[Project, Project], parting: dict[str, str]
):
    """With frozen batch norm, whatever parts the batch of 23 images; the last of them has one."""
    warm, cold = both
    warm.set(student__batch_norm="frozen", optimiser__batch=23, train__epochs=2)
    anew(warm, "warmup")
    states, histories = [], []
    for project, how in ((warm, {}), (cold if "CCD_DEVICES" in parting else warm, parting)):
        assert "mAP against the labels" in anew(project, "train", **how)
        states.append(load_file(next(project.root.glob(".ccd/train/*/epochs/0002.*"))))
        histories.append(pd.read_csv(project / "data/classifier/history.csv"))
    assert np.allclose(*histories, rtol=1e-3)
    start = load_file(warm / "data/warmup/student.safetensors")
    start |= load_file(warm / "data/warmup/optimiser.safetensors")
    one, many = states
    moved = {  # weights, and Adam's moments
        name: float((one[name] - start[name.partition(".")[2]]).abs().max()) for name in one
    }
    assert any(moved[name] > 1e-3 for name in moved if name.startswith("weights."))
    assert any(moved[name] > 1e-3 for name in moved if name.startswith("moments."))
    for name in one:
        assert float((one[name] - many[name]).abs().max()) < 1e-5 + 0.02 * moved[name], name


def test_statistics_of_a_whole_batch_cannot_be_had_on_several_processors(project: Project):
    done = project.stage("warmup", check=False, CCD_MICRO_BATCH="3")
    assert done.returncode == 1
    assert "student.batch_norm" in done.stderr
    assert "Traceback" not in done.stderr
    path = project / "data/warmup/student.safetensors"
    student = build_student(load_weights(path, StudentConfig)[1])
    with pytest.raises(UserError, match=r"student.batch_norm to frozen .* or CCD_DEVICES to 1"):
        prepare_batch_norm(student, ranks=2, device="cpu")
    prepare_batch_norm(student, ranks=1, device="cpu")


def test_a_killed_rank_is_named_and_the_others_blocks_are_kept(cold_project: Project):
    before = cold_project.digests(EMBEDDINGS)
    shutil.rmtree(cold_project / ".ccd/local_clip")
    del cold_project.environment["OMP_NUM_THREADS"]  # a launch chooses it
    process = started(cold_project, "local_clip", CCD_DEVICES="2", CCD_BLOCK="1")
    scratch = cold_project / ".ccd/local_clip"
    wait_for(lambda: len(list(scratch.glob("*/blocks-of-1/*.npz"))) >= 4, process)
    victim = next(pid for pid in descendants(process.pid) if b"RANK=1\0" in environment_of(pid))
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "rank 1 of 2 ended with SIGKILL" in said
    assert cold_project.digests(EMBEDDINGS) == before
    kept = {file: file.stat().st_mtime_ns for file in scratch.glob("*/blocks-of-1/*.npz")}
    assert kept
    cold_project.stage("local_clip", CCD_BLOCK="1")  # one process goes on where two were
    assert all(file.stat().st_mtime_ns == then for file, then in kept.items())


def test_a_rank_killed_in_training_ends_the_run_and_the_epochs_are_kept(cold_project: Project):
    cold_project.set(student__batch_norm="frozen", warmup__epochs=200)
    shutil.rmtree(cold_project / ".ccd/warmup")
    process = started(cold_project, "warmup", CCD_DEVICES="2")
    epochs = cold_project / ".ccd/warmup"
    wait_for(lambda: len(list(epochs.glob("*/epochs/*.safetensors"))) >= 1, process)
    victim = next(pid for pid in descendants(process.pid) if b"RANK=0\0" in environment_of(pid))
    os.kill(victim, signal.SIGKILL)
    _, said = process.communicate()
    assert process.returncode == 1
    assert re.search("rank [01] of 2 ended with", said)
    assert list(epochs.glob("*/epochs/*.safetensors"))


@pytest.fixture
def srun(tmp_path: Path) -> str:
    """A stand-in for it: two tasks on one node, with the variables that SLURM sets."""
    script = tmp_path / "srun"
    script.write_text(
        "#!/bin/bash\nexport SLURM_NTASKS=2 SLURM_NNODES=1 SLURM_JOB_NAME=bash SLURM_JOB_ID=7\n"
        'SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & one=$!\n'
        'SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & zero=$!\n'
        'trap "kill $zero $one" TERM\n'
        "wait $zero $one; wait $one; other=$?; wait $zero; exit $(($? | other))\n"
    )
    script.chmod(0o755)
    return str(script)


def test_other_launchers_place_the_ranks(both: tuple[Project, Project], srun: str):
    warm, cold = both
    anew(warm, "global_clip")
    alone = warm.digests("data/global_clip.zarr/**/*")
    torchrun = "torchrun --nproc-per-node=2 --no-python"
    said = anew(cold, "global_clip", CCD_LAUNCH=torchrun)
    assert "global_clip: 16/16 images" in said  # half of them, of each rank
    assert cold.digests("data/global_clip.zarr/**/*") == alone
    cold.set(student__batch_norm="frozen")
    assert "epoch 1, label loss" in anew(cold, "warmup", CCD_LAUNCH=srun)


def test_a_signal_reaches_the_ranks_of_another_launcher(cold_project: Project, srun: str):
    shutil.rmtree(cold_project / ".ccd/local_clip")
    process = started(cold_project, "local_clip", CCD_LAUNCH=srun, CCD_BLOCK="1")
    scratch = cold_project / ".ccd/local_clip"
    wait_for(lambda: len(list(scratch.glob("*/blocks-of-1/*.npz"))) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert "blocks are done and kept" in said
    assert "Traceback" not in said


def test_a_launcher_that_fails_or_is_not_there_is_named(project: Project):
    for launcher, why in {"false": "false ended with code 1", "no-srun": "cannot be run"}.items():
        done = project.stage("global_clip", check=False, CCD_LAUNCH=launcher)
        assert done.returncode == 1
        assert why in done.stderr
        assert "Traceback" not in done.stderr


def test_a_rank_of_other_parameters_than_the_launch_refuses(project: Project):
    done = project.stage("global_clip", check=False, CCD_FINGERPRINT="of before an edit")
    assert done.returncode == 1
    assert "while the ranks were starting" in done.stderr


def test_the_first_rank_goes_on_when_the_others_blocks_are_whole(monkeypatch, tmp_path: Path):
    from stages.runtime.job import Job
    from stages.runtime.resume import in_blocks

    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ccd")
    job = Job("bench", "x")
    folder = job.scratch / "blocks-of-2"
    folder.mkdir(parents=True)
    whole = io.BytesIO()
    np.savez(whole, row=np.array([2, 3]))
    other = folder / "000000002.npz"
    other.write_bytes(whole.getvalue()[:-40])

    def mend() -> None:
        time.sleep(0.5)
        other.write_bytes(whole.getvalue())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(mend)
        blocks = in_blocks(
            job, 5, 2, "rows", lambda own: ({"row": np.array(block)} for block in own)
        )
        assert np.concatenate(list(blocks.of("row"))).tolist() == [0, 1, 2, 3, 4]


def test_the_shares_of_a_batch_weigh_as_the_batch():
    from stages.training.distributed import share

    for size in range(1, 9):
        batch, processes = list(range(size)), 4
        shares = [share(batch, rank, processes) for rank in range(processes)]
        weighed = np.zeros(size)
        for own, weight in shares:
            assert own
            weighed[own] += weight / processes  # the gradients' mean is taken over ranks
        assert np.allclose(weighed, 1 / size)


def test_a_numbered_device_is_not_for_several_ranks(monkeypatch):
    from stages.models.device import device

    monkeypatch.setenv("CCD_DEVICE", "cuda:1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "ccd")
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    with pytest.raises(UserError, match="CCD_DEVICE=cuda:1: several ranks"):
        device()


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


def environment_of(pid: int) -> bytes:
    return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()


def test_a_rank_takes_its_place_from_the_launcher(monkeypatch):
    from stages.runtime import ranks

    assert ranks.place() == (0, 1, 0, 1)
    monkeypatch.setenv("SLURM_PROCID", "3")  # in a batch job that srun did not start
    assert ranks.place() == (0, 1, 0, 1)
    for name, value in {"NTASKS": "16", "LOCALID": "3", "NNODES": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv(ranks.LAUNCHED, "1")
    assert ranks.place() == (3, 16, 3, 8)
    assert not ranks.wanted()


def test_the_batch_is_a_power_of_two_that_takes_half_of_the_memory():
    from stages.models.device import largest_batch

    gib = 1 << 30
    assert largest_batch(24 * gib, 3 * gib, 3 * gib + gib // 2) == 16
    assert largest_batch(24 * gib, 20 * gib, 40 * gib) == 1
    assert largest_batch(1 << 50, 1, 2) == 128
    for one in np.random.default_rng(0).integers(1, 1 << 30, 50).tolist():
        batch = largest_batch(8 * gib, one, 2 * one)
        assert batch == 1 or one * (batch + 1) <= 4 * gib or batch == 128
