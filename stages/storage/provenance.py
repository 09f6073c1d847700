"""Where an artifact comes from, and the digests by which damage and strangers are noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from stages.runtime.errors import UserError, reason

SUMS = "SHA256SUMS"  # in a folder of loose files: their digests, as `sha256sum -c` takes them
ROWS = 1024  # of labels, scores or embeddings that the cheap stages work on at a time


class Provenance(TypedDict, total=False):
    """What an artifact says of itself; each has those of the keys that are about it.

    index, teacher, student, boxes: digests of what it was made from; the last of a table's file.
    schema, columns (a digest each) and sha256 (of all the others) are added as it is written.
    """

    schema: str
    columns: dict[str, str]
    sha256: str
    index: str
    teacher: str
    student: str
    boxes: str
    classes: list[str]
    asked: list[str]  # the classes that views may ask for
    templates: list[str]
    temperature: float
    side: int  # pixels of the student's input for maps
    views: str  # how the places of local views were found
    units: str
    engine: str  # what ran the teacher's tower, if not torch
    files: dict[str, str]  # digests of results/, by name


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parts_of(stop: int, size: int = ROWS, start: int = 0) -> list[slice]:
    """start..stop in slices of `size`, at least one: rows that are worked on at a time."""
    firsts = range(start, max(stop, start + 1), size)
    return [slice(first, min(first + size, stop)) for first in firsts]


def utf8(strings: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Strings as bytes, each ended by a zero, for a digest."""
    return np.frombuffer("".join(f"{text}\0" for text in strings).encode(), np.uint8)


class Digests:
    """Digests of named arrays whose rows come in parts; the same however they are parted."""

    def __init__(self) -> None:
        self._rows: dict[str, Any] = {}
        self._kinds: dict[str, str] = {}

    def add(self, parts: Mapping[str, npt.NDArray[Any]]) -> None:
        """The next rows of some arrays."""
        for name, part in parts.items():
            self._kinds[name] = f"{part.dtype} {part.shape[1:]}"
            self._rows.setdefault(name, hashlib.sha256()).update(np.ascontiguousarray(part))

    def of_columns(self) -> dict[str, str]:
        """A digest an array, of its type, shape and content."""
        return {
            name: hashlib.sha256(f"{self._kinds[name]} {rows.hexdigest()}".encode()).hexdigest()
            for name, rows in sorted(self._rows.items())
        }

    def check(self, path: Path, note: Provenance) -> None:
        """Raise `UserError` unless the arrays are those that `note` is of."""
        if not self.of_columns().items() <= note["columns"].items():
            raise damaged(path, ValueError("content and digest differ"))


def note_digest(note: Provenance) -> str:
    """Digest of a provenance, but for the digest in it; the arrays' own are among it."""
    described = {key: value for key, value in note.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def check_note(path: Path, schema: str, note: Provenance, index: str | None) -> None:
    if note.get("schema") != schema:
        raise UserError(f"{path} is of schema {note.get('schema')}, not {schema}: {redo(path)}")
    if index is not None and note.get("index") != index:
        raise UserError(
            f"{path} was made from another index than data/index.parquet "
            f"({str(note.get('index'))[:12]}, not {index[:12]}): {redo(path)}"
        )


def redo(path: Path) -> str:
    return f"delete {path} and run `dvc repro`"


def absent(path: Path) -> UserError:
    return UserError(f"{path} is not there: run `dvc repro` first")


def damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({reason(error)}): {redo(path)}")


def write_sums(folder: Path) -> None:
    """Write the digests of all files in `folder`, by name."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name != SUMS)
    (folder / SUMS).write_text("".join(f"{file_digest(file)}  {file.name}\n" for file in files))


def check_sums(folder: Path, *names: str) -> None:
    """Raise `UserError` unless the named files of `folder` are those that its digests are of."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        for name in names:
            if file_digest(folder / name) != known.get(name):
                raise UserError(
                    f"{folder / name} is not the file that {folder / SUMS} knows (the digests "
                    f"differ): {redo(folder / name)}"
                )
    except FileNotFoundError as error:
        raise absent(Path(error.filename)) from None
    except UnicodeDecodeError:
        raise UserError(f"{folder / SUMS} is damaged: {redo(folder / SUMS)}") from None
