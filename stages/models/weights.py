"""Weights on disk: a safetensors file, and a JSON beside it that says what it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from stages.errors import UserError

Note = dict[str, Any]


def save_weights(path: Path, tensors: dict[str, Tensor], note: Note) -> None:
    """Write `tensors` to `path` and `note`, with the file's digest added, to `path` with .json."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    note = note | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(note, indent=2, sort_keys=True) + "\n")


def verified(path: Path) -> tuple[bytes, Note]:
    """The bytes of a weights file and its note, after the digest was checked.

    Raises `UserError` if a file is missing or damaged.
    """
    try:
        note: Note = json.loads(path.with_suffix(".json").read_text())
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is not there: run `dvc repro` first") from None
    except ValueError as error:
        raise UserError(f"{path.with_suffix('.json')} is damaged ({error})") from None
    if hashlib.sha256(content).hexdigest() != note.get("sha256"):
        raise UserError(f"{path} is not the file its .json describes: the digests differ")
    return content, note


def load_weights(path: Path, index: str | None = None) -> tuple[dict[str, Tensor], Note]:
    """What `save_weights` wrote, checked; refused if made from another `index`."""
    content, note = verified(path)
    if index is not None and note.get("index") != index:
        raise UserError(
            f"{path} was made from another index than data/index.parquet: run `dvc repro`"
        )
    try:
        return load(content), note
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error})") from None
