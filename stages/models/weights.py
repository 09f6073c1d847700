"""Weights on disk: a safetensors file, and a JSON beside it, the note, that says what it is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from stages.runtime.errors import UserError


class Note(BaseModel):
    """What the JSON beside a weights file says.

    sha256 is of that file, and note_sha256 of all else that the note says; both are added as it is
    written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    what: ClassVar[str] = "weights file of the pipeline"  # for messages

    sha256: str = ""
    note_sha256: str = ""
    index: str | None = None  # digest of the index that the weights were learned from

    def to_json(self) -> str:
        """As text, with its digest; what is None is left out."""
        content = self.model_dump(mode="json", exclude_none=True)
        content["note_sha256"] = _digest_of_note(content)
        return json.dumps(content, indent=2, sort_keys=True) + "\n"

    def of_file(self, content: bytes) -> Self:
        """The same note, of a file with that content."""
        return self.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})


AnyNote = TypeVar("AnyNote", bound=Note)
MAKE_AGAIN = "delete it and run `dvc repro`, or copy the file and its .json again"


class TeacherNote(Note):
    """model: its name for open_clip; origin: of the weights, a tag or a file's name."""

    model: str = ""
    origin: str = ""


def save_weights(path: Path, tensors: dict[str, Tensor], note: Note) -> None:
    """Write `tensors` to `path` and `note`, with the digests added, to `path` with .json.

    Raises `UserError` for a tensor that is not finite.
    """
    check_finite(tensors, str(path.name))
    path.parent.mkdir(parents=True, exist_ok=True)
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    path.write_bytes(content)
    path.with_suffix(".json").write_text(note.of_file(content).to_json())


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """Raise `UserError` that names the first tensor with a value that is not finite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{where}: the tensor {name} holds values that are not finite")


def _digest_of_note(content: dict[str, Any]) -> str:
    described = {key: value for key, value in content.items() if key != "note_sha256"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def read_note(path: Path, kind: type[AnyNote]) -> AnyNote:
    """The note beside a weights file; `UserError` if it is missing, damaged or of another kind."""
    beside = path.with_suffix(".json")
    try:
        text = beside.read_bytes()
        note = kind.model_validate_json(text)
    except FileNotFoundError:
        raise UserError(f"{beside} is not there: run `dvc repro` first") from None
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise UserError(f"{beside} is damaged (it is no JSON): {MAKE_AGAIN}") from None
        where = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path} is no {kind.what}: `{where}` in its .json: {first['msg'].lower()}"
        ) from None
    if not note.note_sha256:
        raise UserError(f"{beside} was written by an older version: {MAKE_AGAIN}")
    if _digest_of_note(json.loads(text)) != note.note_sha256:
        raise UserError(f"{beside} was changed by hand or is damaged: {MAKE_AGAIN}")
    return note


def read_verified(path: Path, kind: type[AnyNote]) -> tuple[bytes, AnyNote]:
    """The bytes of a weights file and its note, after the digest was checked.

    Raises `UserError` if a file is missing or damaged.
    """
    note = read_note(path, kind)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is not there: run `dvc repro` first") from None
    if note.of_file(content).sha256 != note.sha256:
        raise UserError(
            f"{path} is not the file its .json describes (the digests differ): {MAKE_AGAIN}"
        )
    return content, note


def load_weights(
    path: Path, kind: type[AnyNote], index: str | None = None
) -> tuple[dict[str, Tensor], AnyNote]:
    """What `save_weights` wrote, checked; refused if made from another `index`."""
    content, note = read_verified(path, kind)
    if index is not None and note.index != index:
        raise UserError(
            f"{path} was made from another index than data/index.parquet: run `dvc repro`"
        )
    try:
        return load(content), note
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({error}): {MAKE_AGAIN}") from None
