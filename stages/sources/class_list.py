"""The class names: a text file, one a line, and what prompts call them."""

from __future__ import annotations

from pathlib import Path

from stages.runtime.errors import UserError
from stages.sources.photograph import has_control, is_formula

# columns of tables that also have one a class
RESERVED = frozenset(
    {"image_id", "class", "rank", "image", "status", "error", "labels", "why", "says"}
)


def class_list(path: str) -> dict[str, str]:
    """The classes of a text file in their order, each with the words that prompts use.

    A line is `name`, or `name = words`: `tvmonitor = tv monitor`. Blank lines and lines with # at
    the start are skipped.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"source.classes in params.yaml: {path}: {error}") from None
    classes: dict[str, str] = {}
    for line in lines:
        if not line.strip() or line.strip().startswith("#"):
            continue
        name, equals, words = (part.strip() for part in line.partition(" = "))
        if not name or (equals and not words) or (not equals and "=" in line):
            raise UserError(f"{path}: {line.strip()!r} is neither `name` nor `name = words`")
        if name in classes:
            raise UserError(f"{path} names the class {name!r} twice")
        if name in RESERVED:
            raise UserError(f"{path}: {name!r} cannot be the name of a class, it is a column's")
        if is_formula(name):
            raise UserError(
                f"{path}: {name!r} would be a formula for a spreadsheet: give the class another "
                "name, `name = words`, with what prompts call it"
            )
        if has_control(line):
            raise UserError(f"{path}: {line!r} holds a control character")
        classes[name] = words or name
    if not classes:
        raise UserError(f"{path} names no class")
    return classes
