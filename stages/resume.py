"""Finished blocks survive a kill.

A block is one immutable file in the job's scratch, written beside its place, synced and renamed.
Which blocks are done is which files are there; nothing else keeps count.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
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


def in_blocks(
    job: Job, count: int, size: int, unit: str, compute: Callable[[range], Arrays]
) -> Arrays:
    """Rows 0..count of named arrays, computed in blocks of `size` rows, each only once.

    `compute` returns, for a range of rows, arrays with one row for each of them.
    """
    blocks = [range(start, min(start + size, count)) for start in range(0, count, size)]
    folder = job.scratch / f"blocks-of-{size}"
    files = [folder / f"{block.start:09d}.npz" for block in blocks]
    done = [file.exists() for file in files]
    if any(done):
        say(f"{job.stage}: resuming, {sum(done)} of {len(blocks)} blocks were done before")
    finished = sum(len(block) for block, there in zip(blocks, done, strict=True) if there)
    with job.signals(), meter(job.stage, unit, count, finished) as progress:
        for block, file in zip(blocks, files, strict=True):
            if not file.exists():
                _save(file, compute(block))
                progress.advance(len(block))
                kept = f"{sum(f.exists() for f in files)} of {len(files)} blocks are done and kept"
                job.stop_if_asked(kept)
    parts = []
    for block, file in zip(blocks, files, strict=True):
        arrays = _load(file, len(block))
        if arrays is None:
            say(f"{job.stage}: {file} is damaged; computing it again")
            file.unlink()
            _save(file, compute(block))
            arrays = _load(file, len(block))
            if arrays is None:
                raise OSError(f"{file} cannot be read back")
        parts.append(arrays)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _save(file: Path, arrays: Arrays) -> None:
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    write_durably(file, content.getvalue())


def _load(file: Path, rows: int) -> Arrays | None:
    """The arrays of a block, or None if the file is damaged (every entry has a CRC)."""
    try:
        with np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError):
        return None
    return arrays if all(len(values) == rows for values in arrays.values()) else None
