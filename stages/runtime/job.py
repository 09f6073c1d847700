"""What every stage's run has in common: one at a time, checked inputs, all outputs at once.

`main("bias", run)` makes a stage module runnable. It holds the stage's lock, hands `run` the
parameters and a `Job`, and publishes what `run` left in `job.staging` in one go, provided that
neither a parameter nor an input changed meanwhile: DVC looks at them after the command, and would
record the old result under the new values for good.

A run is known by its fingerprint, a digest of what `dvc.yaml` declares for the stage (its code,
inputs and parameters) and of what computes it. `job.scratch` belongs to it and outlives a kill.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from stages.runtime import ranks
from stages.runtime.code import must_be_the_code_said
from stages.runtime.errors import Interrupted, UserError, reason
from stages.runtime.fingerprint import Declaration, declaration, fingerprint
from stages.runtime.params import Params
from stages.runtime.params_file import PARAMS_FILE, parse_params, read_yaml
from stages.runtime.progress import say, warn
from stages.runtime.publishing import clear_beside, clear_partial, lock, publish

HOME = Path(".ccd")
WORKER = "DataLoader worker (pid"  # how torch begins to say that one was killed
LESS = {  # memory, by stage
    "index": "source.max_pixels in params.yaml leaves the largest images out",
    "warmup": "set CCD_MICRO_BATCH to fewer images at a time, or CCD_CACHE_GB to 0",
    "train": "set CCD_MICRO_BATCH to fewer images at a time, or CCD_CACHE_GB to 0",
}


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
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as stages/__init__.py left it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.argv[1:] and declared_by is None:
        print(f"{stage} takes no arguments: params.yaml says what it does, `dvc repro` runs it")
        sys.exit(0 if sys.argv[1:] == ["--help"] else 2)
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
    must_be_the_code_said(stage)
    try:
        with lock(HOME / stage) if ranks.place().rank == 0 else nullcontext():
            job = Job(stage, fingerprint(declared, raw))
            if os.environ.get(ranks.FINGERPRINT, job.fingerprint) != job.fingerprint:
                raise UserError(
                    "a parameter, an input or the code changed while the ranks were starting: run "
                    "`dvc repro` again"
                )
            _execute(job, run, params, declared.outs, declare)
    except (MemoryError, RuntimeError) as error:  # torch's own errors of memory are of the latter
        if WORKER in str(error):  # raised wherever the run stands just now
            _worker_was_killed()
        if not isinstance(error, MemoryError) and "memory" not in str(error).lower():
            raise
        raise UserError(
            f"not enough memory ({reason(error)[:150]}): {LESS.get(stage, 'set CCD_BATCH lower')}; "
            "nothing was published, finished work is kept"
        ) from error
    except ConnectionError:  # or its pipe is broken before the kernel says that it ended
        _worker_was_killed()
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(
            f"{error.strerror or error}{where}; nothing was published, finished work is kept"
        ) from error


def _worker_was_killed() -> NoReturn:
    """Say so; torch says it once more, with a traceback, as it tidies up."""
    show = sys.unraisablehook
    sys.unraisablehook = lambda odd: None if WORKER in str(odd.exc_value) else show(odd)
    raise UserError(
        "a process that decodes images was killed, most likely for want of memory: set "
        "CCD_WORKERS to fewer of them; nothing was published, finished work is kept"
    ) from None


def _execute(
    job: Job,
    run: Callable[[Params, Job], None],
    params: Params,
    outs: tuple[str, ...],
    declare: Callable[[Any], Declaration],
) -> None:
    shutil.rmtree(job.staging, ignore_errors=True)
    job.staging.mkdir(parents=True)
    if job.rank == 0:
        clear_beside(outs)
        clear_partial(job.scratch)
    if job.rank > 0:
        try:
            with suppress(ShareDone):
                run(params, job)
        finally:
            shutil.rmtree(job.staging)
        return
    for other in (HOME / job.stage).iterdir():
        if other.is_dir() and other != job.scratch:
            shutil.rmtree(other)
    try:
        run(params, job)
    except OSError:  # what it wrote would fill the disk that may be full
        shutil.rmtree(job.staging, ignore_errors=True)
        raise
    parse_params(again := read_yaml(PARAMS_FILE))
    if fingerprint(declare(again), again) != job.fingerprint:
        raise UserError(
            "a parameter, an input or the code changed while the stage was running; nothing "
            "was published. Run `dvc repro` again; with the old values it goes on where it was."
        )
    publish(job.staging, outs)
