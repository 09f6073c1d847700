"""A folder of photographs, in any tree; class names in a text file; labels, if any, in a table."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes

import pandas as pd

from stages.errors import UserError
from stages.images.decode import SUFFIXES
from stages.params import NONE

# columns of tables that also have one a class
RESERVED = frozenset({"image_id", "class", "rank", "image", "status", "error"})


class Photograph(NamedTuple):
    """A file of the source. `error` is set where its name alone makes it unusable."""

    image_id: str
    path: str
    split: str
    error: str


def photographs(
    root: str, test_folder: str, key: str = "source.root in params.yaml"
) -> tuple[list[Photograph], Counter[str]]:
    """Every image file below `root`, sorted by id: its path below `root`, with forward slashes.

    Images below `root/test_folder` are the test split, all others the train split. A link to
    something below `root` is passed over, since that is found at its own place; one that leaves
    `root` is refused. A name that is no UTF-8, or holds a control character, has its odd bytes
    percent-encoded and an error. Also returns how many other files there are, by suffix.

    key: where `root` was given, for errors.
    """
    top = os.fsencode(root)
    if not os.path.isdir(top):
        raise UserError(f"{key}: {root} is no folder")
    files: list[bytes] = []
    others: Counter[str] = Counter()
    _collect(top, os.path.realpath(top), files, others)
    if not files:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"{key}: no image ({kinds}) below {root}")
    test = os.path.normpath(test_folder) if test_folder else ""
    return [_photograph(root, os.path.relpath(file, top), test) for file in sorted(files)], others


def _collect(folder: bytes, top: bytes, files: list[bytes], others: Counter[str]) -> None:
    for entry in os.scandir(folder):
        if entry.name.startswith(b"."):
            continue
        suffix = os.path.splitext(entry.name)[1].lower().decode("ascii", "replace")
        if entry.is_symlink():
            if not (os.path.realpath(entry.path) + b"/").startswith(top + b"/"):
                raise UserError(
                    f"{printable(entry.path)} is a link that leaves {printable(top)}; copy its "
                    "target there, or let the whole folder be a link"
                )
        elif entry.is_dir():
            _collect(entry.path, top, files, others)
        elif suffix in SUFFIXES:
            files.append(entry.path)
        else:
            others[suffix or "without a suffix"] += 1


def printable(name: bytes) -> str:
    """A file's name as text that any file and terminal can take."""
    return name.decode("utf-8", "backslashreplace")


def _has_control(text: str) -> bool:
    return any(unicodedata.category(character) == "Cc" for character in text)


def _photograph(root: str, name: bytes, test_folder: str) -> Photograph:
    error = ""
    try:
        image_id = name.decode("utf-8")
        if _has_control(image_id):
            error = "the name holds a control character"
    except UnicodeDecodeError:
        error = "the name is not UTF-8"
    if error:
        image_id = quote_from_bytes(name, safe="/ ")
    split = "test" if test_folder and image_id.startswith(f"{test_folder}/") else "train"
    return Photograph(image_id, (Path(root) / image_id).as_posix(), split, error)


def class_names(path: str) -> list[str]:
    """The class names of a text file, one a line; blank lines and lines with # are skipped."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source.classes in params.yaml: {path}: {error}") from None
    names = [line.strip() for line in lines]
    names = [name for name in names if name and not name.startswith("#")]
    if not names:
        raise UserError(f"{path} names no class")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} names the class {name!r} twice")
        if name in RESERVED or _has_control(name):
            raise UserError(f"{path}: {name!r} cannot be the name of a class, it is a column's")
    return names


def labels(path: str, classes: list[str]) -> pd.DataFrame:
    """Ground truth: a CSV of `image_id` and a 0/1 column a class; no rows for `data/none`.

    Returns `image_id` and a float32 column for each of `classes`, in their order.
    """
    if path == NONE:
        return pd.DataFrame(
            {"image_id": pd.Series(dtype=str)} | {c: pd.Series(dtype="float32") for c in classes}
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row longer than the header
            table = pd.read_csv(
                path, dtype={"image_id": str}, keep_default_na=False, index_col=False
            )
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        raise UserError(f"source.labels in params.yaml: {path}: {error}") from None
    missing = [name for name in ["image_id", *classes] if name not in table.columns]
    if missing:
        raise UserError(f"{path} has no column {missing[0]!r} (source.labels in params.yaml)")
    twice = table["image_id"][table["image_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"{path}, row {twice.index[0] + 2}: the image {twice.iloc[0]!r} comes twice"
        )
    for name in classes:
        values = table[name].astype(str)
        wrong = table.index[~values.isin({"0", "1", "0.0", "1.0"})]
        if len(wrong):
            raise UserError(
                f"{path}, row {wrong[0] + 2}: {name} is {values[wrong[0]]!r}, neither 0 nor 1"
            )
    return table[["image_id", *classes]].astype(dict.fromkeys(classes, "float32"))
