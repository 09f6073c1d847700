"""Processes that are killed, disks that are full, outputs that go somewhere else."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from voluptuous import Invalid

from stages.runtime.errors import Interrupted, UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import execute
from stages.runtime.publishing import clear_partial, publish
from stages.runtime.resume import write_durably
from tests.conftest import Project, as_ordinary_processes
from tests.faults.conftest import refusal
from tests.test_dvc_yaml import STAGES, paths

ALL = ("data/**/*", "results/*")
WRITING = [stage for stage in STAGES if stage != "check"]
QUICK = {"weights", "bias", "global_clip"}


def kept(project: Project) -> dict[str, bytes]:
    """What the pipeline made; the page names nothing that is not in the others."""
    return project.digests(*ALL)


def strays(project: Project) -> list[Path]:
    names = (".*.new", ".*.old", "*.partial")
    return [path for name in names for path in project.root.rglob(name)]


@pytest.mark.parametrize(
    "stage", [pytest.param(s, marks=[] if s in QUICK else pytest.mark.long) for s in WRITING]
)
def test_a_disk_that_fills_publishes_nothing_and_is_left_as_it_was(project: Project, stage: str):
    """The kernel refuses a file to grow, in every stage that writes."""
    shutil.rmtree(project / ".ccd", ignore_errors=True)
    before, cold = kept(project), as_ordinary_processes(project)
    full = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        cwd=cold.root,
        env=cold.environment,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200)),
    )
    assert "nothing was published" in refusal(full)
    assert kept(project) == before
    assert not strays(project)
    assert not [path for path in (project / ".ccd").rglob("staging/**/*") if path.is_file()]
    project.stage(stage)
    assert kept(project) == before


def test_a_disk_that_fills_at_the_last_of_three_outputs_publishes_none(project: Project):
    before, cold = kept(project), as_ordinary_processes(project)
    script = (
        "import resource, runpy\n"
        "from stages.storage import tables\n"
        "real, calls = tables.write_table, []\n"
        "def write(*a):\n"
        "    calls.append(a)\n"
        "    if len(calls) == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))\n"
        "    return real(*a)\n"
        "tables.write_table = write\n"
        "runpy.run_module('stages.bias', run_name='__main__')\n"
    )
    assert "nothing was published" in refusal(cold.run("python", "-c", script, check=False))
    assert kept(project) == before
    assert not strays(project)


@given(st.data(), st.integers(1, 4))
def test_whichever_renaming_fails_all_outputs_are_old_or_all_are_new(data, count: int):
    """The outputs are files and folders, some of which were not there before."""
    folder = Path(os.environ["PYTEST_TMP"]) / str(time.monotonic_ns())
    outs = tuple(f"data/{n}{'.zarr' if n % 2 else '.txt'}" for n in range(count))
    for top, text in (("old", "old"), ("new", "new")):
        for out in outs:
            path = folder / top / out
            path.parent.mkdir(parents=True, exist_ok=True)
            if out.endswith(".zarr"):
                path.mkdir()
                path = path / "part"
            path.write_text(text)
    missing = data.draw(st.sets(st.sampled_from(outs)))
    for out in missing:
        shutil.rmtree(folder / "old" / out, ignore_errors=True)
        (folder / "old" / out).unlink(missing_ok=True)
    fails_at = data.draw(st.integers(0, 2 * count))
    before = content(folder / "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "old")
        renamed = failing(Path.rename, fails_at)
        patch.setattr(Path, "rename", renamed)
        try:
            publish(folder / "new", outs)
            expected = dict.fromkeys(content(folder / "old"), "new")
            assert len(expected) == count
        except OSError:
            expected = before
    assert content(folder / "old") == expected


def content(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in folder.rglob("*") if f.is_file()}


def failing(real, at: int):
    """`real`, which fails once, when it is called for the `at`-th time."""
    calls = [0]

    def sometimes(*arguments):
        calls[0] += 1
        if calls[0] == at:
            raise OSError(28, "No space left on device")
        return real(*arguments)

    return sometimes


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))


def test_an_output_that_cannot_be_written_leaves_the_others_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("old")
    Path("staging/no").mkdir(parents=True)
    Path("no").symlink_to("/proc/self/fd")
    for name in ("a.txt", "no/b.txt"):
        Path("staging", name).write_text("new")
    with pytest.raises(OSError, match="b.txt"):
        publish(Path("staging"), ("a.txt", "no/b.txt"))
    assert Path("a.txt").read_text() == "old"
    assert not list(Path().glob(".*"))
    with pytest.raises(UserError, match=r"the stage left no c.txt"):
        publish(Path("staging"), ("c.txt",))


@pytest.mark.parametrize("fails_at", [None, 1, 2])
def test_outputs_come_from_another_file_system_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int | None
):
    monkeypatch.chdir(tmp_path)
    for top, text in (("", "old"), ("staging", "new")):
        for name in ("a.txt", "b.txt"):
            Path(top).mkdir(exist_ok=True)
            Path(top, name).write_text(text)
    real, calls = shutil.move, []

    def elsewhere(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def move(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == fails_at:
            target.write_text("ne")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(Path, "replace", elsewhere)
    monkeypatch.setattr(shutil, "move", move)
    if fails_at:
        with pytest.raises(OSError, match="No space"):
            publish(Path("staging"), ("a.txt", "b.txt"))
    else:
        publish(Path("staging"), ("a.txt", "b.txt"))
    found = {Path(name).read_text() for name in ("a.txt", "b.txt")}
    assert found == {"old" if fails_at else "new"}
    assert not list(Path().glob(".*"))


def test_a_signal_between_two_renamings_waits_for_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    outs = tuple("abc")
    for name in outs:
        Path("staging").mkdir(exist_ok=True)
        Path("staging", name).write_text("new")
    real = Path.rename

    def interrupted(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(Interrupted, match="when all outputs were published"):
        publish(Path("staging"), outs)
    assert [Path(name).read_text() for name in outs] == ["new"] * 3
    assert not list(Path().glob(".*"))


def test_outputs_that_are_links_become_outputs(project: Project, tmp_path: Path):
    """A user moved some to another disk, or DVC links to its cache: neither is written through."""
    before = kept(project)
    elsewhere = {}
    for out in ("data/global_scores.parquet", "data/global_clip.zarr"):
        elsewhere[out] = tmp_path / Path(out).name
        shutil.move(project / out, elsewhere[out])
        (project / out).symlink_to(elsewhere[out])
    for stage in ("global_clip", "bias"):
        project.stage(stage)
    assert kept(project) == before
    assert not any((project / out).is_symlink() for out in elsewhere)
    assert all(path.exists() for path in elsewhere.values())


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_the_cache_of_dvc_is_never_written_through(project: Project, kind: str):
    project.run("dvc", "config", "cache.type", kind)
    project.run("dvc", "checkout", "--relink")
    cache = project.digests(".dvc/cache/**/*")
    project.set(bias__debias=False)
    for stage in ("bias", "warmup", "report"):
        project.stage(stage)
    assert project.digests(".dvc/cache/**/*") == cache
    project.set(bias__debias=True)
    project.repro()
    assert {k: v for k, v in project.digests(".dvc/cache/**/*").items() if k in cache} == cache


def test_files_that_were_being_written_by_the_dead_are_taken_away_and_by_the_living_kept(
    tmp_path: Path,
):
    import socket

    dead = subprocess.Popen(["true"])
    dead.wait()
    names = {
        f"a.npz.{socket.gethostname()}-{dead.pid}.partial": False,
        f"a.npz.{socket.gethostname()}-{os.getpid()}.partial": True,
        f"a.npz.another-host-{dead.pid}.partial": True,
        "a.npz": True,
    }
    blocks = tmp_path / "blocks-of-4"
    blocks.mkdir()
    for name in names:
        (blocks / name).write_bytes(b"")
    clear_partial(tmp_path)
    assert {name: (blocks / name).exists() for name in names} == names


def test_a_durable_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(os.fsync, 1))
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "block", b"x")
    assert not list(tmp_path.iterdir())


def test_a_killed_decoding_worker_is_named_and_finished_blocks_are_kept(project: Project):
    """One that meets a certain photograph is killed by the kernel."""
    code = project / "stages/images/decode.py"
    text = code.read_text()
    code.write_text(
        text.replace(
            "def read_image(",
            "def read_image(path, *rest, **more):\n"
            "    if path.endswith('00009.jpg'):\n"
            "        os.kill(os.getpid(), 9)\n"
            "    return _read_image(path, *rest, **more)\n\n\ndef _read_image(",
        )
    )
    shutil.rmtree(project / ".ccd")
    cold = as_ordinary_processes(project)
    machine = {"CCD_WORKERS": "1", "CCD_BLOCK": "2", "CCD_BATCH": "2"}
    said = refusal(cold.stage("global_clip", check=False, **machine))
    assert "a process that decodes images was killed" in said
    assert "set CCD_WORKERS" in said
    assert list((project / ".ccd/global_clip").glob("*/blocks-of-2/*.npz"))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DataLoader worker (pid 7) is killed by signal"), ConnectionResetError(104, "x")],
)
def test_a_killed_worker_is_named_however_it_is_noticed(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    monkeypatch.chdir(project.root)

    def run(*_: object) -> None:
        raise error

    with pytest.raises(UserError, match="a process that decodes images was killed"):
        execute("global_clip", run, partial(declaration, "global_clip"))


@pytest.mark.parametrize("delay", [0.3, 1.0])
def test_an_interrupt_while_a_stage_imports_just_ends_it(cold_project: Project, delay: float):
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.global_clip"],
        cwd=cold_project.root,
        env=cold_project.environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Traceback" not in said


def test_an_interrupt_of_a_stage_that_keeps_nothing_ends_it_quietly(cold_project: Project):
    code = cold_project / "stages/bias.py"
    line = "def run(params: Params, job: Job) -> None:\n"
    assert line in code.read_text()
    wait = "    import time; print('at work', flush=True); time.sleep(600)\n"
    code.write_text(code.read_text().replace(line, line + wait))
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.bias"],
        cwd=cold_project.root,
        env=cold_project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGINT
    assert said.startswith("bias: stopped; nothing was published")
    assert said.count("\n") == 1


def test_a_kill_between_two_renamings_is_mended_by_the_next_run(project: Project):
    before = kept(project)
    script = (
        "import os, runpy, pathlib\n"
        "real, calls = pathlib.Path.rename, []\n"
        "def rename(*a):\n"
        "    calls.append(a)\n"
        "    if len(calls) == {}: os.kill(os.getpid(), 9)\n"
        "    return real(*a)\n"
        "pathlib.Path.rename = rename\n"
        "import shutil; take = shutil.rmtree\n"
        "def rmtree(path, *a, **k):\n"
        "    if {} == 0 and str(path).endswith('replaced'): os.kill(os.getpid(), 9)\n"
        "    return take(path, *a, **k)\n"
        "shutil.rmtree = rmtree\n"
        "runpy.run_module('stages.cam_boxes', run_name='__main__')\n"
    )
    for at in (0, 1, 2, 3, 4):  # 0: after the last of them
        (project / "killed.py").write_text(script.format(at, at))
        done = project.run("python", "-m", "killed", check=False)
        assert done.returncode == 256 - signal.SIGKILL  # as the warm python has it from its child
        project.stage("cam_boxes")  # by itself, not from the cache of DVC
        assert kept(project) == before
        assert not strays(project)


@pytest.mark.long
def test_twenty_kills_at_random_moments_of_whole_runs_end_in_the_same_bytes(project: Project):
    """Of the whole group, or of DVC alone, whose stage then goes on as an orphan."""
    before, dvc = kept(project), str(Path(sys.executable).with_name("dvc"))
    began = time.monotonic()
    assert "up to date" in project.run(dvc, "repro").stdout
    nothing_to_do = time.monotonic() - began  # tells how fast this machine is
    for path in [out for stage in STAGES for out in paths(stage, "outs", "metrics", "plots")]:
        whole = project / path
        shutil.rmtree(whole) if whole.is_dir() else whole.unlink()
    for folder in (".ccd", ".dvc/cache"):
        shutil.rmtree(project / folder)
    (project / "dvc.lock").unlink()
    rng, stopped = random.Random(0), 0
    for number in range(20):
        mend_lock_of_dvc(project)
        process = subprocess.Popen(
            [dvc, "repro"],
            cwd=project.root,
            env=project.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # of this session, or a warm stage could not be in it
        )
        time.sleep(rng.uniform(0.5, 2.5) * nothing_to_do)
        if number % 3:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        stopped += process.wait() == -signal.SIGKILL
        wait_for_orphans(process.pid)
    assert stopped > 5, "the kills came after the work"
    mend_lock_of_dvc(project)
    project.repro()
    assert kept(project) == before
    assert not strays(project)


def mend_lock_of_dvc(project: Project) -> None:
    """As docs/reliability.md tells the user, where DVC was killed while it wrote its own file."""
    lock = project / ".dvc/tmp/rwlock"
    try:
        json.loads(lock.read_text())
    except ValueError:
        lock.unlink()
    except FileNotFoundError:
        pass
    of_results = project / "dvc.lock"
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(of_results))
    except (Invalid, YAMLError):
        of_results.unlink()
    except FileNotFoundError:
        pass


def wait_for_orphans(group: int) -> None:
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def test_a_clock_that_goes_backwards_changes_nothing(project: Project):
    """Artifacts from the future, scratch from the past: content counts, not time."""
    before = kept(project)
    for path in project.root.rglob("*"):
        if path.is_file() and ".dvc/tmp" not in str(path):
            when = 4e9 if "data" in path.parts else 1.0
            os.utime(path, (when, when))
    assert project.repro() == []
    done = project.stage("global_clip")
    assert "resuming, 1 of 1 blocks were done before" in done.stderr
    assert kept(project) == before


TELL = """
import socket

def tell(what):
    open(TOLD, "a").write(f"{what}\\n")
    raise OSError(what)

class Guarded(socket.socket):
    def connect(self, address, *a):
        if self.family != socket.AF_UNIX: tell(address)
        return super().connect(address, *a)
    def connect_ex(self, address, *a): tell(address)
    def sendto(self, *a): tell(a)

socket.socket = Guarded
socket.getaddrinfo = lambda *a, **k: tell(a)
"""


def test_no_stage_but_weights_opens_a_connection(project: Project):
    """With a socket module that tells; what processes of one run say to each other is local.

    One stage has it from the interpreter's start, with all that it imports; the others from
    the package's.
    """
    told, package = project / "told", project / "stages/__init__.py"
    guard = TELL.replace("TOLD", repr(str(told)))
    (project / "sitecustomize.py").write_text(guard)
    package.write_text(package.read_text() + guard)
    (project / "stages/probe.py").write_text(
        "import socket; socket.create_connection(('127.0.0.1', 9))"
    )
    cold = as_ordinary_processes(project)
    from_the_start = {"PYTHONPATH": str(project.root)}
    for probed, environment in ((cold, from_the_start), (project, {})):
        probed.stage("probe", check=False, **environment)
        assert told.read_text()
        told.unlink()
    cold.stage("train", **from_the_start)
    for stage in set(STAGES) - {"weights", "check", "index", "ground_truth", "bias", "fuse_labels"}:
        project.stage(stage)
    assert not told.exists()


def test_two_runs_at_once_are_one_run_and_a_refusal(cold_project: Project):
    script = "import time; from stages.runtime.publishing import lock; from pathlib import Path\n"
    script += "with lock(Path('.ccd/bias')): print('held', flush=True); time.sleep(600)"
    holder = subprocess.Popen(
        [sys.executable, "-c", script], cwd=cold_project.root, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    said = refusal(cold_project.stage("bias", check=False))
    holder.kill()
    holder.wait()
    assert "is already running here" in said
    assert f"process {holder.pid} on" in said
    cold_project.stage("bias")


@pytest.mark.long
def test_an_experiment_in_a_temporary_copy_sees_photographs_by_an_absolute_path(project: Project):
    """`dvc exp run --temp` leaves out what git ignores."""
    with (project / ".gitignore").open("a") as file:
        file.write("/photos\n")
    project.set(source__root=str(project / "photos"))
    project.repro()
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    project.run("git", "add", "-A")
    project.run("git", *identity, "commit", "-qm", "a")
    done = project.run("dvc", "exp", "run", "--temp", "-S", "report.samples=2")
    assert "Ran experiment(s)" in done.stdout
    assert "Running stage 'global_clip'" not in done.stdout
