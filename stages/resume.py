"""Finished blocks survive a kill.

A block is one immutable file in the job's scratch, written beside its place, synced and renamed.
Which blocks are done is which files are there; nothing else keeps count.
"""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.job import Job
from stages.progress import meter, say

Arrays = dict[str, npt.NDArray[Any]]


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that after a crash it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Blocks:
    """Rows of named arrays, read a block at a time: all of them may not fit into memory."""

    def __init__(self, files: list[Path], blocks: list[range]) -> None:
        self.files, self.blocks = files, blocks

    def __iter__(self) -> Iterator[tuple[range, Arrays]]:
        for file, block in zip(self.files, self.blocks, strict=True):
            arrays = _load(file, len(block))
            if arrays is None:
                raise OSError(errno.EIO, "a finished block cannot be read back", str(file))
            yield block, arrays

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """All rows of one array."""
        return np.concatenate([arrays[name] for _, arrays in self])


def in_blocks(
    job: Job, count: int, size: int, unit: str, compute: Callable[[range], Arrays]
) -> Blocks:
    """Rows 0..count, at least one, of named arrays, in blocks of `size` rows, each computed once.

    `compute` returns, for a range of rows, arrays with one row for each of them. A block that was
    damaged since is computed again.
    """
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    folder = job.scratch / f"blocks-of-{size}"
    files = [folder / f"{block.start:09d}.npz" for block in blocks]
    for file, block in zip(files, blocks, strict=True):
        if file.exists() and _load(file, len(block)) is None:
            say(f"{job.stage}: {file} is damaged; computing it again")
            file.unlink()
    there = [file.exists() for file in files]
    if any(there):
        say(f"{job.stage}: resuming, {sum(there)} of {len(blocks)} blocks were done before")
    finished = sum(len(block) for block, done in zip(blocks, there, strict=True) if done)
    with job.signals(), meter(job.stage, unit, count, finished) as progress:
        for number, (file, block) in enumerate(zip(files, blocks, strict=True)):
            if not there[number]:
                _save(file, compute(block))
                there[number] = True
                progress.advance(len(block))
                job.stop_if_asked(f"{sum(there)} of {len(files)} blocks are done and kept")
    return Blocks(files, blocks)


def _save(file: Path, arrays: Arrays) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]  # the stubs see its other argument
    write_durably(file, content.getvalue())


def _load(file: Path, rows: int) -> Arrays | None:
    """The arrays of a block, or None if the file is damaged (every entry has a CRC)."""
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError):
        return None
    return arrays if all(len(values) == rows for values in arrays.values()) else None
