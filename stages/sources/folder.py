"""A folder of photographs, in any tree; class names in a text file; labels, if any, in a table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes

import pandas as pd

from stages.errors import UserError
from stages.images.decode import SUFFIXES
from stages.params import NONE


class Photograph(NamedTuple):
    """A file of the source. `error` is set where its name alone makes it unusable."""

    image_id: str
    path: str
    split: str
    error: str


def photographs(root: str, test_folder: str) -> list[Photograph]:
    """Every image file below `root`, sorted by id: its path below `root`, with forward slashes.

    Images below `root/test_folder` are the test split, all others the train split. A link to
    something below `root` is passed over, since that is found at its own place; one that leaves
    `root` is refused. A name that is no UTF-8, or holds a control character, has its odd bytes
    percent-encoded and an error.
    """
    top = os.fsencode(root)
    if not os.path.isdir(top):
        raise UserError(f"source.root in params.yaml: {root} is no folder")
    found = sorted(_image_files(top, os.path.realpath(top)))
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"source.root in params.yaml: no image ({kinds}) below {root}")
    return [_photograph(root, os.path.relpath(file, top), test_folder) for file in found]


def _image_files(folder: bytes, top: bytes) -> list[bytes]:
    files = []
    for entry in os.scandir(folder):
        if entry.name.startswith(b"."):
            continue
        if entry.is_symlink():
            if not (os.path.realpath(entry.path) + b"/").startswith(top + b"/"):
                raise UserError(
                    f"{_printable(entry.path)} is a link that leaves source.root; copy its target "
                    "there, or let source.root itself be a link"
                )
        elif entry.is_dir():
            files += _image_files(entry.path, top)
        elif os.path.splitext(entry.name)[1].lower().decode("ascii", "replace") in SUFFIXES:
            files.append(entry.path)
    return files


def _printable(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _photograph(root: str, name: bytes, test_folder: str) -> Photograph:
    error = ""
    try:
        image_id = name.decode("utf-8")
        if not image_id.isprintable():
            error = "the name holds a control character"
    except UnicodeDecodeError:
        error = "the name is not UTF-8"
    if error:
        image_id = quote_from_bytes(name, safe="/ ")
    split = "test" if image_id.startswith(f"{test_folder}/") else "train"
    return Photograph(image_id, (Path(root) / image_id).as_posix(), split, error)


def class_names(path: str) -> list[str]:
    """The class names of a text file, one a line; blank lines and lines with # are skipped."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source.classes in params.yaml: {path}: {error}") from None
    names = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not names:
        raise UserError(f"{path} names no class")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path} names the class {name!r} twice")
        if name == "image_id" or not name.isprintable():
            raise UserError(f"{path}: {name!r} cannot be the name of a class")
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
        table = pd.read_csv(path, dtype={"image_id": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
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
