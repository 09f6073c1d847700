"""What every stage's run has in common: one at a time, checked inputs, all outputs at once.

`main("bias", run)` makes a stage module runnable. It holds the stage's lock, hands `run` the
parameters and a `Job`, and publishes what `run` left in `job.staging` in one go, provided that
neither a parameter nor an input changed meanwhile: DVC looks at them after the command, and would
record the old result under the new values for good.

A run is known by its fingerprint, a digest of what `dvc.yaml` declares for the stage (its code,
inputs and parameters) and of what computes it. `job.scratch` belongs to it and outlives a kill.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from stages import ranks
from stages.errors import Interrupted, UserError, reason
from stages.params import PARAMS_FILE, Params, parse_params, read_yaml
from stages.progress import say, warn

DVC_FILE = Path("dvc.yaml")
HOME = Path(".ccd")
LIBRARIES = ("numpy", "open_clip_torch", "pillow", "scipy", "torch", "torchvision")
MACHINE = ("CCD_DEVICE", "CCD_BATCH")  # as the user set them


@dataclass(frozen=True)
class Declaration:
    """What `dvc.yaml` says of one stage, with `${…}` filled in from `params.yaml`.

    The dependencies the user names in `params.yaml` are kept apart from the project's own.
    """

    deps: tuple[str, ...]
    user_deps: tuple[str, ...]
    params: tuple[str, ...]
    other_params: tuple[tuple[str, str], ...]  # file and key
    outs: tuple[str, ...]


class ShareDone(Exception):
    """This rank did its part; the first rank does the rest."""


class Job:
    """One run of one stage, or one rank's part in it: only what the first leaves is published."""

    def __init__(self, stage: str, fingerprint: str) -> None:
        self.stage = stage
        self.fingerprint = fingerprint
        self.rank, self.ranks, *_ = ranks.place()
        self.scratch = HOME / stage / fingerprint
        self.staging = self.scratch / ("staging" if self.rank == 0 else f"staging-{self.rank}")
        self._signal: int | None = None

    @property
    def asked_to_stop(self) -> bool:
        """Whether a signal came, to this process."""
        return self._signal is not None

    def stop_if_asked(self, kept: str) -> None:
        """Call where nothing would be lost: ends the run if a signal asked for it.

        kept: what is done and will not be done again, for the message.
        """
        if self.asked_to_stop:
            self.stop(kept)

    def stop(self, kept: str) -> NoReturn:
        """End the run, as a signal to this rank or to another asked."""
        raise Interrupted(
            self._signal or signal.SIGTERM,
            f"{self.stage}: stopped; {kept}. `dvc repro` goes on from there.",
        )

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Meanwhile SIGINT and SIGTERM wait for `stop_if_asked`; a second one ends the run at once.

        For work that keeps what it finishes; elsewhere a signal ends the run as usual.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self._signal is not None:
                raise KeyboardInterrupt
            self._signal = number
            say(f"{self.stage}: finishing the work at hand; once more to stop now")

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def main(
    stage: str,
    run: Callable[[Params, Job], None],
    on_ranks: bool = False,
    declared_by: Callable[[Any], Declaration] | None = None,
) -> NoReturn:
    """Run a stage and exit: 0, 1 after a `UserError`, 128 + the number after a signal.

    on_ranks: it can be run by several processes, if the user asks for them. declared_by: gives the
    declaration of a stage that is not in `dvc.yaml`, from the content of `params.yaml`.
    """
    declare = declared_by or partial(declaration, stage)
    try:
        if on_ranks and ranks.wanted():
            raw = read_yaml(PARAMS_FILE)
            parse_params(raw)
            ranks.launch(stage, fingerprint(declare(raw), raw))
        else:
            execute(stage, run, declare)
    except UserError as error:
        warn("".join(f"{stage}: {line}\n" for line in str(error).splitlines()).rstrip())
        sys.exit(1)
    except Interrupted as stop:
        warn(str(stop))
        sys.exit(128 + stop.signal_number)
    except KeyboardInterrupt:
        warn(f"{stage}: stopped; nothing was published, finished blocks and epochs are kept")
        sys.exit(128 + signal.SIGINT)
    sys.exit(0)


def execute(
    stage: str, run: Callable[[Params, Job], None], declare: Callable[[Any], Declaration]
) -> None:
    """Run a stage under its lock and publish its outputs."""
    raw = read_yaml(PARAMS_FILE)
    params = parse_params(raw)
    declared = declare(raw)
    try:
        with _only_one(stage) if ranks.place().rank == 0 else nullcontext():
            job = Job(stage, fingerprint(declared, raw))
            if os.environ.get(ranks.FINGERPRINT, job.fingerprint) != job.fingerprint:
                raise UserError(
                    "a parameter, an input or the code changed while the ranks were starting: run "
                    "`dvc repro` again"
                )
            _execute(job, run, params, declared.outs, declare)
    except (MemoryError, RuntimeError) as error:  # torch's own errors of memory are of the latter
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        raise UserError(
            f"not enough memory ({reason(error)[:150]}): set CCD_BATCH to fewer images at a time, "
            "or optimiser.batch in params.yaml for training; nothing was published, finished work "
            "is kept"
        ) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"{error.strerror or error}{where}; nothing was published, finished work is kept"
        ) from error


def _execute(
    job: Job,
    run: Callable[[Params, Job], None],
    params: Params,
    outs: tuple[str, ...],
    declare: Callable[[Any], Declaration],
) -> None:
    shutil.rmtree(job.staging, ignore_errors=True)
    job.staging.mkdir(parents=True)
    if job.rank > 0:
        with suppress(ShareDone):
            run(params, job)
        shutil.rmtree(job.staging)
        return
    for other in (HOME / job.stage).iterdir():
        if other.is_dir() and other != job.scratch:
            shutil.rmtree(other)
    run(params, job)
    parse_params(again := read_yaml(PARAMS_FILE))
    if fingerprint(declare(again), again) != job.fingerprint:
        raise UserError(
            "a parameter, an input or the code changed while the stage was running; nothing "
            "was published. Run `dvc repro` again; with the old values it goes on where it was."
        )
    _publish(job.staging, outs)


def declaration(
    stage: str, params: Any, file: Path = DVC_FILE, item: dict[str, str] | None = None
) -> Declaration:
    """The stage's entry in `dvc.yaml`; `params` is the content of `params.yaml`.

    file: another than the pipeline's own, whose stages run in the same folder; item: which of the
    stages it is that a matrix there stands for.
    """
    stages = read_yaml(file)["stages"]
    if stage not in stages:
        raise UserError(f"{file} has no stage `{stage}`")
    entry = stages[stage]
    known = params | {"item": item}
    listed = entry.get("params", [])

    def names(*kinds: str) -> list[str]:
        items = [item for kind in kinds for item in entry.get(kind, [])]
        return [next(iter(item)) if isinstance(item, dict) else item for item in items]

    def filled(name: str) -> str:
        return re.sub(r"\$\{([\w.]+)\}", lambda match: str(lookup(known, match[1])), name)

    return Declaration(
        deps=tuple(name for name in names("deps") if "${" not in name),
        user_deps=tuple(filled(name) for name in names("deps") if "${" in name),
        params=tuple(key for key in listed if isinstance(key, str)),
        other_params=tuple(
            (path, key)
            for others in listed
            if isinstance(others, dict)
            for path, keys in others.items()
            for key in keys
        ),
        outs=tuple(filled(name) for name in names("outs", "metrics", "plots")),
    )


def lookup(params: Any, key: str) -> Any:
    """The value of a dotted key in the content of `params.yaml`."""
    for part in key.split("."):
        params = params[part]
    return params


def fingerprint(declared: Declaration, params: Any) -> str:
    """Digest of a stage's parameters, the content of its dependencies, and what computes it.

    Of the machine what may change the last bits of a result, so that blocks never mix.
    """
    facts = {
        "params": {key: lookup(params, key) for key in declared.params},
        "other_params": [lookup(read_yaml(Path(f)), key) for f, key in declared.other_params],
        "deps": {dep: _content(Path(dep), by_time=False) for dep in declared.deps},
        "user_deps": {dep: _content(Path(dep), by_time=True) for dep in declared.user_deps},
        "libraries": {name: version(name) for name in LIBRARIES},
        "machine": {name: os.environ.get(name, "") for name in MACHINE},
        "threads": os.environ.get(ranks.THREADS, os.environ.get("OMP_NUM_THREADS", "")),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _content(path: Path, by_time: bool) -> str:
    """Digest of a file's content, or of the names and contents of the files in a folder.

    by_time: know a folder's files by size and time of change instead. So for the user's own
    folders: the photographs may be many, and `index` reads their content anyway.
    """
    if path.is_file():
        return _file_digest(path)
    if not path.is_dir():
        raise UserError(f"{path} is not there: run `dvc repro` so that what makes it runs first")
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(os.fsencode(path)):
        folders.sort()
        for name in sorted(names):
            file = os.path.join(folder, name)
            if by_time:
                status = os.stat(file, follow_symlinks=False)
                known = f"{status.st_size} {status.st_mtime_ns}"
            else:
                known = _file_digest(Path(os.fsdecode(file)))
            digest.update(file + f" {known}\n".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _only_one(stage: str) -> Iterator[None]:
    """Hold the stage's lock, or say who does.

    A POSIX record lock: it ends with its process, however that dies, and children do not keep it.
    """
    folder = HOME / stage
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise UserError(
                f"this stage is already running here: {holder}. It goes on even if the `dvc repro` "
                "that started it was killed. Wait for it, or end it, and run `dvc repro` again."
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _publish(staging: Path, outs: tuple[str, ...]) -> None:
    """Move the outputs to their places, after everything is there and safely on disk."""
    for out in outs:
        if not (staging / out).exists():
            raise UserError(f"the stage left no {out}")
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for out in outs:
        target = Path(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.new")  # data/ may be another file system
        _remove(beside)
        shutil.move(staging / out, beside)
        if target.is_dir():
            _remove(target)
        beside.replace(target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
