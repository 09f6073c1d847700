"""Finished blocks survive a kill.

A block is one immutable file in the job's scratch, written beside its place, synced and renamed.
Which blocks are done is which files are there; nothing else keeps count.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.runtime.errors import UserError
from stages.runtime.job import Job, ShareDone
from stages.runtime.progress import meter, say, warn
from stages.runtime.types import Arrays


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # another process may write the same: a rank of a run whose launcher was killed
    partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:  # it would fill the disk that was full
        partial.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class DamagedBlock(OSError):
    """A block's file is there and is none; another error of reading says nothing about it."""


class Blocks:
    """Rows of named arrays, read a block at a time: all of them may not fit into memory."""

    def __init__(self, files: list[Path], blocks: list[range]) -> None:
        self.files, self.blocks = files, blocks

    def __iter__(self) -> Iterator[tuple[range, Arrays]]:
        return ((block, _load(file)) for file, block in zip(self.files, self.blocks, strict=True))

    def of(self, name: str) -> Iterator[npt.NDArray[Any]]:
        """The rows of one array, a block at a time."""
        return (_load(file, name)[name] for file in self.files)


class Plan(NamedTuple):
    """The work of one rank: `files[n]` is to hold `blocks[n]`; the `own` numbers are its share.

    missing: those of its share that are still to be computed.
    """

    blocks: list[range]
    files: list[Path]
    own: range
    missing: list[int]


def in_blocks(
    job: Job,
    count: int,
    size: int,
    unit: str,
    compute: Callable[[list[range]], Iterator[Arrays]],
    called: Callable[[int], str] = "row {}".format,
) -> Blocks:
    """Rows 0..count, at least one, of named arrays, in blocks of `size` rows, each computed once.

    `compute` yields, for each of the ranges of rows it is given, arrays with one row for each of
    them. A block that was damaged since is computed again. Of several ranks each computes its
    share, and the first goes on when all are whole. A value that is not finite is refused; called:
    what its row is called in the message.
    """
    plan = plan_blocks(job, count, size)

    def finite(blocks: list[range]) -> Iterator[Arrays]:
        for block, arrays in zip(blocks, compute(blocks), strict=True):
            _check_finite(arrays, block, called)
            yield arrays

    with job.signals():
        compute_blocks(job, plan, unit, finite)
        if job.rank > 0:
            raise ShareDone
        await_blocks(job, plan)
    return Blocks(plan.files, plan.blocks)


def plan_blocks(job: Job, count: int, size: int) -> Plan:
    """Which blocks there are, which of them are this rank's, and which of those are missing."""
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    # blocks of another size lie elsewhere: with the size of the views that share a pass, the last
    # bits of a row may change, so they must not mix
    folder = job.scratch / f"blocks-of-{size}"
    files = [folder / f"{block.start:09d}.npz" for block in blocks]
    own = range(job.rank, len(blocks), job.ranks)
    for number in own:
        if files[number].exists() and not _whole(files[number], len(blocks[number])):
            warn(f"{job.stage}: {files[number]} is damaged; computing it again")
            files[number].unlink()
    missing = [number for number in own if not files[number].exists()]
    if len(missing) < len(own):
        done = len(own) - len(missing)
        say(f"{job.stage}: resuming, {done} of {len(own)} blocks were done before")
    return Plan(blocks, files, own, missing)


def compute_blocks(
    job: Job, plan: Plan, unit: str, compute: Callable[[list[range]], Iterator[Arrays]]
) -> None:
    """Compute what is missing; a signal ends that after the block at hand."""
    total, left = (sum(len(plan.blocks[n]) for n in some) for some in (plan.own, plan.missing))
    done = len(plan.own) - len(plan.missing)
    with meter(job.stage, unit, total, total - left) as progress, ThreadPoolExecutor(1) as writer:
        # one generator for all of them, so that what it reads ahead goes on from block to block;
        # a block is written while the next is made, but never two, so that memory stays bounded
        made = compute([plan.blocks[number] for number in plan.missing])
        writing: list[Future[None]] = []
        for number, arrays in zip(plan.missing, made, strict=True):
            for before in writing:
                before.result()
            writing = [writer.submit(_save, plan.files[number], arrays)]
            progress.advance(len(plan.blocks[number]))
            done += 1
            if job.asked_to_stop or done == len(plan.own):
                writing.pop().result()
                job.stop_if_asked(f"{done} of {len(plan.own)} blocks are done and kept")


def await_blocks(job: Job, plan: Plan) -> None:
    """Wait until the other ranks' blocks are whole. Their files are all that the ranks share."""
    for number in sorted(set(range(len(plan.blocks))) - set(plan.own)):
        while not _whole(plan.files[number], len(plan.blocks[number])):
            job.stop_if_asked("what is finished is kept")
            time.sleep(0.1)


def _check_finite(arrays: Arrays, block: range, called: Callable[[int], str]) -> None:
    for name, values in arrays.items():
        odd = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if odd.any():
            raise UserError(
                f"{called(block[int(odd.argmax())])}: what the network says ({name}) is not "
                "finite: a lower precision than its weights can take, or the weights themselves"
            )


def _save(file: Path, arrays: Arrays) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # the stubs see its other argument
    write_durably(file, content.getvalue())


def _whole(file: Path, rows: int) -> bool:
    """Whether a block's file is there and undamaged, of so many rows; every entry has a CRC."""
    try:
        return all(values.shape[:1] == (rows,) for values in _load(file).values())
    except (DamagedBlock, FileNotFoundError):
        return False


def _load(file: Path, *names: str) -> Arrays:
    """The arrays of a block, or those of some names."""
    try:
        # from memory: a damaged archive may ask for a place before the file's begin
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            return {name: content[name] for name in names or content.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, RuntimeError):
        raise DamagedBlock(errno.EIO, "a finished block is damaged", str(file)) from None
