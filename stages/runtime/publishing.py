"""One run of a stage at a time, and all its outputs at once."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
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
    """Move the outputs to their places, after everything is there and safely on disk: all or none.

    What takes time, or a full disk could stop, is done beside the places; the rest are renamings,
    which no signal parts and which are taken back if one of them fails.
    """
    for out in outs:
        if not (staging / out).exists():
            raise UserError(f"the stage left no {out}")
    for path in sorted(staging.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    clear_beside(outs)
    places = [Path(out) for out in outs]
    undo: list[tuple[Path, Path]] = []
    try:
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(staging / place, _beside(place, "new"))  # may be another file system
        before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
        try:
            for place in places:
                if place.exists() or place.is_symlink():
                    place.rename(_beside(place, "old"))
                    undo.append((_beside(place, "old"), place))
                _beside(place, "new").rename(place)
                undo.append((place, _beside(place, "new")))
        except OSError:
            for now, then in reversed(undo):
                now.rename(then)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    finally:
        clear_beside(outs)


def clear_beside(outs: tuple[str, ...]) -> None:
    """Take away what a run that was killed while it published left beside the outputs' places."""
    for out in outs:
        for kind in ("new", "old"):
            _remove(_beside(Path(out), kind))


def clear_partial(scratch: Path) -> None:
    """Take away what processes of this machine were writing when they were killed."""
    for path in scratch.rglob("*.partial"):
        named = re.search(rf"\.{re.escape(socket.gethostname())}-(\d+)\.partial$", path.name)
        if named and not _runs(int(named[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _beside(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.{kind}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
