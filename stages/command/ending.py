"""How a command ends where something is wrong that its user can mend: one line, and a code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

from stages.runtime.errors import UserError, clean, reason


@contextmanager
def one_line(code: int = 1) -> Iterator[None]:
    """What goes wrong for a reason that the user can mend is said in one line."""
    try:
        yield
    except UserError as error:
        fail(str(error), code)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else reason(error))


def fail(message: str, code: int = 1) -> NoReturn:
    typer.echo(clean(f"ccd: {message}"), err=True)
    raise typer.Exit(code)


def place_for(path: Path) -> None:
    """End with 2 unless a file can be written there."""
    if path.is_dir():
        fail(f"{path} is a folder: name a file in it", code=2)
    if not path.parent.is_dir():
        fail(f"{path}: there is no folder {path.parent}", code=2)
