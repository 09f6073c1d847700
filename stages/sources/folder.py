"""A folder of photographs, in any tree."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from urllib.parse import quote_from_bytes

from stages.images.decode import SUFFIXES
from stages.runtime.errors import UserError
from stages.sources.photograph import Photograph, has_control, printable


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


def _photograph(root: str, name: bytes, test_folder: str) -> Photograph:
    error = ""
    try:
        image_id = name.decode("utf-8")
        if has_control(image_id):
            error = "the name holds a control character"
    except UnicodeDecodeError:
        error = "the name is not UTF-8"
    if error:
        image_id = quote_from_bytes(name, safe="/ ")
    split = "test" if test_folder and image_id.startswith(f"{test_folder}/") else "train"
    return Photograph(image_id, (Path(root) / image_id).as_posix(), split, error)
