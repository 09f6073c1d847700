"""One run of a stage at a time, and all its outputs at once."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.runtime.errors import UserError


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a stage, in its `folder`, or say who does.

    A POSIX record lock: it ends with its process, however that dies, and children do not keep it.
    """
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


def publish(staging: Path, outs: tuple[str, ...]) -> None:
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
