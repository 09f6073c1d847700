"""Weights from elsewhere: read as plain tensors, whatever the file's form, and never as code.

And a teacher made of them: an open_clip model, from a published tag, a file or a folder.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import (
    convert_to_custom_text_state_dict,
    resize_pos_embed,
    resize_text_pos_embed,
)
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.models.teacher import (
    CONFIG,
    WEIGHTS,
    ModelShape,
    Preprocess,
    TeacherConfig,
    empty_model,
)
from stages.runtime.errors import UserError, ours, reason
from stages.runtime.params import NONE
from stages.runtime.params import Teacher as TeacherParams
from stages.runtime.progress import say
from stages.storage.provenance import file_digest

KEY = "teacher.checkpoint in params.yaml"
USUAL_NAMES = (
    WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth",
    "model.pth",
)  # fmt: skip
POSITION_IDS = "text.transformer.embeddings.position_ids"
# what OpenAI's archives hold beside the weights
EXTRA = ("input_resolution", "context_length", "vocab_size")


def read_foreign_weights(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors by name of a safetensors file, or of a state dict of PyTorch's.

    A state dict may stand below `state_dict`, its names may begin with `module.`. A file with a
    digest in its name, as torchvision's, is checked against it. Raises `UserError` in the name of
    the parameter `key`; a pickle that holds more than tensors is refused and not run.
    """
    named = re.search(r"-([0-9a-f]{8})\.pth$", path.name)
    try:
        if named and (digest := file_digest(path))[:8] != named[1]:
            raise UserError(f"{key}: {path} is not what its name says: its SHA-256 is {digest}")
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{key}: {path} is no safetensors file ({error})") from None
    except UserError:
        raise
    except pickle.UnpicklingError:  # torch's own words tell how to switch the protection off
        raise UserError(
            f"{key}: {path} cannot be loaded as plain weights, which is the only way a file is "
            "opened here: it is damaged, or holds more than tensors, which may be code"
        ) from None
    except Exception as error:  # the zip reader and torch's storages have their own
        if ours(error):
            raise
        raise UserError(
            f"{key}: {path} cannot be loaded as plain weights: {reason(error)}"
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
        digest = file_digest(path)
    except OSError as error:
        raise UserError(f"{key}: {path}: {error.strerror}") from None
    if digest != expected:
        raise UserError(
            f"{key}: {path} is not the expected file: its SHA-256 is {digest}, not {expected}"
        )


def load_teacher(given: TeacherParams) -> tuple[Any, TeacherConfig]:
    """An open_clip model in float32 on the CPU, and the configuration of its local-dir."""
    if given.model == "local-dir":
        return _from_folder(Path(given.checkpoint), given.sha256)
    known = open_clip.get_model_config(given.model) if "/" not in given.model else None
    if known is None:
        raise UserError(
            f"teacher.model in params.yaml: open_clip knows no {given.model!r}; "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them"
        )
    shape = ModelShape.model_validate(known)
    if "hf_model_name" in shape.text_cfg:
        raise UserError(
            f"teacher.model in params.yaml: the text encoder of {given.model} is not open_clip's "
            "own, and cannot be pinned"
        )
    if given.checkpoint != NONE:
        path, preprocess = Path(given.checkpoint), usual_preprocessing(given.model)
    else:
        path, preprocess = _of_tag(given.model, given.pretrained, shape)
    model = _from_file(path, given, shape)
    return model, TeacherConfig(model_cfg=shape, preprocess_cfg=preprocess)


def _from_folder(folder: Path, sha256: str) -> tuple[Any, TeacherConfig]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{KEY}: {folder} holds no {CONFIG}, which `model: local-dir` wants")
    config = TeacherConfig.read(folder)
    path = _weights_in(folder)
    if sha256 != "none":
        check_digest(path, sha256, KEY)
    model = _created(f"local-dir:{folder}", str(folder))
    _load(model, read_foreign_weights(path, KEY), path, str(folder / CONFIG))
    preprocess = Preprocess.model_validate(open_clip.get_model_preprocess_cfg(model))
    return model, config.model_copy(update={"preprocess_cfg": preprocess})


def _weights_in(folder: Path) -> Path:
    """The weights file of a local-dir: the one with a usual name, or the only one."""
    named = [folder / name for name in USUAL_NAMES if (folder / name).is_file()]
    others = sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin", ".pth"))
    if named or len(others) == 1:
        return (named or others)[0]
    if others:
        several = ", ".join(file.name for file in others[:5])
        raise UserError(
            f"{KEY}: {folder} holds several weights: rename one of {several} to {WEIGHTS}"
        )
    raise UserError(
        f"{KEY}: {folder} holds no weights by the name of {WEIGHTS}, but "
        + (", ".join(sorted(file.name for file in folder.iterdir())[:10]))
    )


def _of_tag(name: str, tag: str, shape: ModelShape) -> tuple[Path, Preprocess]:
    """A published tag's file on this machine, fetched if need be, and its normalisation."""
    if not open_clip.is_pretrained_cfg(name, tag):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise UserError(f"teacher.pretrained in params.yaml: {name} has no {tag!r}, but {tags}")
    config = open_clip.get_pretrained_cfg(name, tag)
    if config.get("quick_gelu"):
        _want_quick_gelu(name, shape, tag)
    say(f"weights: fetching {name} {tag} through open_clip, once")
    try:
        path = Path(open_clip.download_pretrained(config))
    except Exception as error:  # whatever the hub makes it raise
        raise UserError(
            f"teacher in params.yaml: {tag} cannot be loaded: {reason(error)}"
        ) from None
    return path, _normalisation(config)


def _from_file(path: Path, given: TeacherParams, shape: ModelShape) -> Any:
    published = published_digest(given.model, path)
    expected = given.sha256 if given.sha256 != "none" else published
    if expected is not None:
        check_digest(path, expected, KEY)
    if is_archive(path):  # only OpenAI's are published in this form, all with QuickGELU
        _want_quick_gelu(given.model, shape, path.name)
        if expected is None:
            raise UserError(
                f"{KEY}: {path} is a TorchScript archive, which holds code: give its publisher's "
                f"`teacher.sha256`, or, if it is OpenAI's of {given.model}, its published name"
            )
        tensors = read_archive(path, KEY)
    else:
        tensors = read_foreign_weights(path, KEY)
    model = _created(given.model, given.model)
    _load(model, tensors, path, given.model)
    return model


def _load(model: Any, tensors: dict[str, Tensor], path: Path, name: str) -> None:
    """Load a file's tensors: each of the model's has to be among them, and no other."""
    tensors = convert_state_dict(model, {name: value.float() for name, value in tensors.items()})
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for key, value in model.state_dict().items():  # a single number may be kept as one of a list
        if key in tensors and value.numel() == tensors[key].numel() == 1:
            tensors[key] = tensors[key].reshape(value.shape)
    if getattr(model, "logit_bias", None) is not None:  # for training alone, and not always kept
        tensors.setdefault("logit_bias", torch.zeros_like(model.logit_bias))
    if POSITION_IDS not in model.state_dict():  # transformers kept these with the weights once
        tensors.pop(POSITION_IDS, None)
    try:
        if set(tensors) == set(model.state_dict()):
            resize_pos_embed(tensors, model)  # for a configuration of another size, as open_clip
            resize_text_pos_embed(tensors, model)
        model.load_state_dict(tensors)
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"{KEY}: {path} does not fit {name}: {reason(error)}") from None


def _want_quick_gelu(name: str, shape: ModelShape, origin: str) -> None:
    if not shape.quick_gelu:
        raise UserError(
            f"teacher.model in params.yaml: {origin} was trained with QuickGELU, which "
            f"{name} is not; use {name}-quickgelu"
        )


def _created(identifier: str, origin: str) -> Any:
    try:
        return empty_model(identifier)
    except Exception as error:  # whatever a folder of the wrong kind, or the hub, makes it raise
        if ours(error):
            raise
        raise UserError(
            f"teacher in params.yaml: {origin} cannot be loaded: {reason(error)}"
        ) from None


def _normalisation(tag: dict[str, Any]) -> Preprocess:
    """The mean and deviation of a tag's input; CLIP's usual ones where it says nothing."""
    return Preprocess(
        mean=tag.get("mean") or open_clip.OPENAI_DATASET_MEAN,
        std=tag.get("std") or open_clip.OPENAI_DATASET_STD,
    )


def usual_preprocessing(name: str) -> Preprocess:
    """The normalisation of the input that the published weights of a model have in common."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = [_normalisation(open_clip.get_pretrained_cfg(name, tag)) for tag in tags]
    if published and all(one == published[0] for one in published):
        return published[0]
    say(f"weights: taking it that {name} was trained with CLIP's usual mean and deviation")
    return _normalisation({})


def keep_tokenizer(given: TeacherParams, config: TeacherConfig, folder: Path) -> None:
    """Keep a tokenizer that is not part of open_clip beside the weights, for use offline."""
    if "hf_tokenizer_name" not in config.model_cfg.text_cfg:
        return
    name = f"local-dir:{given.checkpoint}" if given.model == "local-dir" else given.model
    try:
        open_clip.get_tokenizer(name).save_pretrained(folder)
    except ImportError:
        raise UserError(
            f"teacher.model in params.yaml: the tokenizer of {given.model} needs another package: "
            "pip install 'ccd-pipeline[tokenizers]'"
        ) from None
    except Exception as error:  # whatever a missing file, or the hub, makes the tokenizer raise
        raise UserError(
            f"teacher in params.yaml: no tokenizer for {given.model}: {reason(error)}"
        ) from None
