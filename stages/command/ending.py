"""How a command ends where something is wrong that its user can mend: one line, and a code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
