"""Weights from elsewhere: read as plain tensors, whatever the file's form, and never as code."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.errors import UserError, reason

# what OpenAI's archives hold beside the weights
EXTRA = ("input_resolution", "context_length", "vocab_size")


def read_checkpoint(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors by name of a safetensors file, or of a state dict of PyTorch's.

    A state dict may stand below `state_dict`, its names may begin with `module.`. A file with a
    digest in its name, as torchvision's, is checked against it. Raises `UserError` in the name of
    the parameter `key`; a pickle that holds more than tensors is refused and not run.
    """
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    try:
        if named and (found := file_digest(path))[:8] != named[1]:
            raise UserError(f"{key}: {path} is not what its name says: its SHA-256 is {found}")
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{key}: {path} is no safetensors file ({error})") from None
    except UserError:
        raise
    except Exception as error:  # the unpickler and the zip reader have their own
        raise UserError(
            f"{key}: {path} cannot be loaded as plain weights, which is the only way a file is "
            f"opened here: {reason(error)}"
        ) from None
    tensors = content.get("state_dict", content) if isinstance(content, dict) else None
    if not (isinstance(tensors, dict) and tensors) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()
    ):
        raise UserError(f"{key}: {path} holds something else than tensors by name")
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): value for name, value in tensors.items()}
    return dict(tensors)


def read_archive(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors by name of an OpenAI archive. It holds code: check its digest before."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch announces the end of TorchScript
            load: Any = torch.jit.load
            archive = load(path, map_location="cpu")
    except Exception as error:  # the interpreter has its own
        raise UserError(f"{key}: {path} is a damaged archive: {reason(error)}") from None
    return {name: value for name, value in archive.state_dict().items() if name not in EXTRA}


def is_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive, as OpenAI publishes its models."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def published_digest(model: str, path: Path) -> str | None:
    """The SHA-256 that OpenAI publishes for a file of that name, as a part of its address."""
    config = open_clip.get_pretrained_cfg(model, "openai") or {}
    address = re.search(r"/([0-9a-f]{64})/([^/]+)$", config.get("url", ""))
    return address[1] if address and address[2] == path.name else None


def check_digest(path: Path, expected: str, key: str) -> None:
    """Raise `UserError` unless the file's SHA-256 is `expected`."""
    try:
        found = file_digest(path)
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}") from None
    if found != expected:
        raise UserError(
            f"{key}: {path} is not the expected file: its SHA-256 is {found}, not {expected}"
        )


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
