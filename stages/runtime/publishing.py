"""One run of a stage at a time, and all its outputs at once."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from stages.runtime.errors import Interrupted, UserError

REPLACED = "replaced"  # in the staging folder: the outputs of before


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

    What takes time, or a full disk could stop, is done before; the rest are renamings, which no
    signal parts and which are taken back if one of them fails.
    """
    for out in outs:
        if not (staging / out).exists():
            raise UserError(f"the stage left no {out}")
    _sync(staging)
    clear_beside(outs)
    try:
        moves = [_prepared(staging, Path(out)) for out in outs]
        with _undisturbed():
            _rename_all(moves)
            with suppress(OSError):  # all is published; the next run tries again
                clear_beside(outs)
            shutil.rmtree(staging / REPLACED, ignore_errors=True)
    except OSError:
        clear_beside(outs)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is the old one or the new one, whenever it is read.

    What a link leads to, or a device, is written as it stands.
    """
    write_all_whole({path: content})


def write_all_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files as `write_whole` does, and none of them unless all can be."""
    beside: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            if not path.is_symlink() and (path.is_file() or not path.exists()):
                beside[path] = _beside(path, "new")
                beside[path].write_bytes(content)
        for path, content in contents.items():
            if path in beside:
                beside[path].replace(path)
            else:  # as /dev/stdout
                path.write_bytes(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)


def _sync(top: Path) -> None:
    for path in [top, *sorted(top.rglob("*"))]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


class _Move(NamedTuple):
    """An output that waits at `new` to take its `place`; what is there goes to `old`."""

    new: Path
    place: Path
    old: Path


def _prepared(staging: Path, place: Path) -> _Move:
    """The output beside its place if that is on another file system, else where it is."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = staging / place, staging / REPLACED / place
    old.parent.mkdir(parents=True, exist_ok=True)
    probe = staging / f"{REPLACED}/probe"
    probe.touch()
    try:
        probe.replace(_beside(place, "new"))
        _beside(place, "new").unlink()
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        new, old = _beside(place, "new"), _beside(place, "old")
        shutil.move(staging / place, new)
        _sync(new)
    return _Move(new, place, old)


def _rename_all(moves: list[_Move]) -> None:
    done: list[tuple[Path, Path]] = []
    try:
        for new, place, old in moves:
            if place.exists() or place.is_symlink():
                place.rename(old)
                done.append((place, old))
            new.rename(place)
            done.append((new, place))
    except OSError:
        for before, now in reversed(done):
            now.rename(before)
        raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A signal that asks to stop comes when the block has ended."""
    came: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise Interrupted(came[0], "stopped, when all outputs were published")


def clear_beside(outs: tuple[str, ...]) -> None:
    """Take away what a run that was killed while it published left beside the outputs' places."""
    for out in outs:
        for kind in ("new", "old"):
            _remove(_beside(Path(out), kind))


def clear_partial(scratch: Path) -> None:
    """Take away what processes of this machine were writing when they were killed."""
    for path in chain(scratch.glob("blocks-of-*/*.partial"), scratch.glob("epochs/*.partial")):
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
