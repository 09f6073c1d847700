"""A folder of photographs, in any tree."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from urllib.parse import quote_from_bytes

from stages.images.decode import SUFFIXES
from stages.runtime.errors import UserError
from stages.sources.photograph import Photograph, has_control, printable

REMEDY = dict.fromkeys((".heic", ".heif"), " (`pip install pillow-heif` lets them be read)")
# folders of a storage box or an operating system, with previews and what was deleted
OF_A_SYSTEM = frozenset(
    {b"@eaDir", b"#recycle", b"#snapshot", b"$RECYCLE.BIN", b"System Volume Information"}
    | {b"lost+found", b"__MACOSX"}
)


def photographs(
    root: str, test_folder: str, key: str = "source.root in params.yaml"
) -> tuple[list[Photograph], Counter[str]]:
    """Every image file below `root`, sorted by id: its path below `root`, with forward slashes.

    Images below `root/test_folder` are the test split, all others the train split. A link to a
    photograph that is found at its own place is passed over, one that leaves `root` refused. A name
    that is no UTF-8, or holds a control character, has its odd bytes percent-encoded and an error.
    A folder that may not be read is among the photographs: it cannot be used. Also returns how many
    other entries there are, and why they are passed over.

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
        found = f"; passed over: {in_words(others)}" if others else ""
        raise UserError(f"{key}: no image ({kinds}) below {root}{found}")
    test = os.path.normpath(test_folder) if test_folder else ""
    return [_photograph(root, os.path.relpath(file, top), test) for file in sorted(files)], others


def in_words(others: Counter[str], most: int = 20) -> str:
    """How many entries were passed over for which reason; of photographs of phones, what to do."""
    shown = sorted(others, key=lambda why: (-others[why], why))[:most]
    words = [f"{others[why]} {why}{REMEDY.get(why, '')}" for why in shown]
    rest = others.total() - sum(others[why] for why in shown)
    return ", ".join(words) + (f" and {rest} of other kinds" if rest else "")


def _collect(folder: bytes, top: bytes, files: list[bytes], others: Counter[str]) -> None:
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        files.append(folder)
        return
    for entry in entries:
        if _is_hidden(entry.name):
            others["hidden"] += 1
        elif entry.name in OF_A_SYSTEM:
            others[f"{entry.name.decode()} of a system"] += 1
        elif entry.is_symlink():
            _follow(entry, top, files, others)
        elif entry.is_dir():
            _collect(entry.path, top, files, others)
        elif _has_suffix(entry.name):
            files.append(entry.path)
        else:
            suffix = os.path.splitext(entry.name)[1].lower().decode("ascii", "replace")
            others[suffix or "without a suffix"] += 1


def _follow(link: os.DirEntry[bytes], top: bytes, files: list[bytes], others: Counter[str]) -> None:
    """What becomes of a link: its target is found anyway, or it stands for one that is not."""
    target = os.path.realpath(link.path)
    if not (target + b"/").startswith(top + b"/"):
        raise UserError(
            f"{printable(link.path)} is a link that leaves {printable(top)}; copy its target "
            "there, or let the whole folder be a link"
        )
    below = os.path.relpath(target, top).split(b"/")
    passed = any(_is_hidden(name) or name in OF_A_SYSTEM for name in below if name != b".")
    if not os.path.exists(target):
        others["broken links"] += 1
    elif os.path.isdir(target):
        others["links to a passed-over folder" if passed else "links to a folder found here"] += 1
    elif _has_suffix(below[-1]) and not passed:
        others["links to a photograph found here"] += 1
    elif _has_suffix(link.name):
        files.append(link.path)
    else:
        others["links to no image"] += 1


def _is_hidden(name: bytes) -> bool:
    return name.startswith(b".")


def _has_suffix(name: bytes) -> bool:
    return os.path.splitext(name)[1].lower().decode("ascii", "replace") in SUFFIXES


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
