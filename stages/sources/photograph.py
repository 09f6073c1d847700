"""What every source gives: photographs, with ids and paths that are safe to use."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pandas as pd

from stages.runtime.errors import UserError, reason


class Photograph(NamedTuple):
    """A file of the source. `error` is set where its name alone makes it unusable."""

    image_id: str
    path: str
    split: str
    error: str


def listed(
    root: str, entries: Iterable[tuple[str, str]], split: str, where: str
) -> list[Photograph]:
    """Photographs of `split` that a list names: pairs of an id and a path below `root`.

    where: the list's file, for errors. A path that is absolute, climbs with `..`, or is a link
    that leaves `root` is refused. Whether a file is there is for the index to find out.
    """
    top = os.path.realpath(root)
    folders: dict[str, str] = {}
    photos = []
    for image_id, name in entries:
        for given in (PurePosixPath(image_id), PurePosixPath(name)):
            if given.is_absolute() or ".." in given.parts or not given.parts:
                raise UserError(f"{where}: {str(given)!r} is no path below {root}")
        if has_control(name) or has_control(image_id):
            raise UserError(f"{where}: {name!r} holds a control character")
        path = Path(root) / name
        parent = str(path.parent)
        if parent not in folders:  # the same few folders hold all of a data set's files
            folders[parent] = os.path.realpath(parent)
        real = os.path.realpath(path) if path.is_symlink() else folders[parent]
        if not f"{real}/".startswith(f"{top}/"):
            raise UserError(
                f"{where}: {name!r} is a link that leaves {root}; let the whole folder {root} be a "
                "link instead, or move what it points to there"
            )
        photos.append(Photograph(image_id, path.as_posix(), split, ""))
    return photos


def lines_of(path: Path, key: str) -> list[str]:
    """The lines of a list, without blank ones; a final newline may be missing.

    key: the parameter that led to it, for errors.
    """
    return [line for _, line in numbered_lines(path, key)]


def numbered_lines(path: Path, key: str) -> list[tuple[int, str]]:
    """As `lines_of`, each with its number in the file."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key} in params.yaml: {path} cannot be read: {reason(error)}") from None
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def printable(name: bytes) -> str:
    """A file's name as text that any file and terminal can take."""
    return name.decode("utf-8", "backslashreplace")


def has_control(text: str) -> bool:
    """Whether there is a control character in `text`, or half a character."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def is_formula(text: str) -> bool:
    """Whether a spreadsheet would take a cell of that text for a formula."""
    return text.startswith(("=", "+", "-", "@", "\t", "\r"))


def columns_of(path: str, key: str, used: Iterable[str]) -> list[str]:
    """The columns of a CSV; `UserError`, in the name of the parameter `key`, if one comes twice.

    used: the columns for which that matters.
    """
    try:
        header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path} cannot be read: {reason(error)}") from None
    names = [str(name) for name in header.iloc[0]]
    for name in used:
        if names.count(name) > 1:
            place = names.index(name, names.index(name) + 1)
            raise UserError(
                f"{key}: {path} has the column {name!r} twice, as number {names.index(name) + 1} "
                f"and {place + 1}"
            )
    return names
