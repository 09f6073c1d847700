"""Stage `weights`: get the teacher's and the student's first weights, once, and pin them.

Reads a pretrained tag (the only stage that may use the network) or a local file or folder. Writes
`data/weights/teacher/`, an open_clip local-dir, and `data/weights/student_init.safetensors`, both
safetensors with a digest that every later stage checks. Pickles are opened as plain weights only.

    python -m stages.weights
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
import torchvision
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from stages.artifacts import STUDENT_INIT, TEACHER
from stages.errors import UserError, reason
from stages.job import Job, main
from stages.models.checkpoint import (
    check_digest,
    is_archive,
    published_digest,
    read_archive,
    read_checkpoint,
)
from stages.models.student import IMAGENET_MEAN, IMAGENET_STD, build_backbone, published_name
from stages.models.teacher import CONFIG, WEIGHTS
from stages.models.weights import Note, load_weights, save_weights
from stages.params import NONE, Params
from stages.params import Teacher as TeacherParams
from stages.progress import say

KEY = "teacher.checkpoint in params.yaml"
STUDENT_KEY = "student.checkpoint in params.yaml"
CLASSIFIER = "student.safetensors"  # in the folder that `train` writes


def run(params: Params, job: Job) -> None:
    given = params.teacher
    folder = job.staging / TEACHER
    logging.getLogger().setLevel(logging.ERROR)  # open_clip reports every step of the loading
    model, config = load_teacher(given)
    own = config["preprocess_cfg"]
    if given.normalisation == "imagenet":
        config = config | {"preprocess_cfg": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}}
    origin = Path(given.checkpoint).name if given.checkpoint != NONE else given.pretrained
    save_weights(folder / WEIGHTS, model.state_dict(), {"model": given.model, "origin": origin})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    keep_tokenizer(given, config, folder)

    student = params.student
    note: Note = {
        "arch": student.arch,
        "output_stride": student.output_stride,
        "weights": student.weights,
    }
    if student.arch == "teacher_tower":
        if not isinstance(model.visual, ModifiedResNet):
            raise UserError(
                "student.arch in params.yaml: this teacher's tower is no ResNet; use another arch"
            )
        note |= {"tower": config["model_cfg"]["vision_cfg"]} | own
    else:
        note |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    if student.weights == "classifier":
        tensors, trained = read_classifier(Path(student.checkpoint))
        if any(trained.get(key) != note.get(key) for key in ("arch", "output_stride", "tower")):
            raise UserError(
                f"{STUDENT_KEY}: {student.checkpoint} is of another network than {student.arch} "
                f"with an output stride of {student.output_stride}"
            )
        note |= {key: trained[key] for key in ("classes", "mean", "std")}
    else:
        tensors = first_weights(note, model, student.checkpoint, params.seed)
    save_weights(job.staging / STUDENT_INIT, tensors, note)


def load_teacher(given: TeacherParams) -> tuple[Any, dict[str, Any]]:
    """An open_clip model in float32 on the CPU, and the configuration of its local-dir."""
    if given.model == "local-dir":
        return _from_folder(Path(given.checkpoint), given.sha256)
    shape = open_clip.get_model_config(given.model) if "/" not in given.model else None
    if shape is None:
        raise UserError(
            f"teacher.model in params.yaml: open_clip knows no {given.model!r}; "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them"
        )
    if "hf_model_name" in shape["text_cfg"]:
        raise UserError(
            f"teacher.model in params.yaml: the text encoder of {given.model} is not open_clip's "
            "own, and cannot be pinned"
        )
    if given.checkpoint != NONE:
        path, preprocess = Path(given.checkpoint), _usual_preprocessing(given.model)
    else:
        path, preprocess = _of_tag(given.model, given.pretrained, shape)
    model = _from_file(path, given, shape)
    normalisation = {key: list(preprocess[key]) for key in ("mean", "std")}
    return model, {"model_cfg": shape, "preprocess_cfg": normalisation}


def _from_folder(folder: Path, sha256: str) -> tuple[Any, dict[str, Any]]:
    if not (folder / CONFIG).is_file():
        raise UserError(f"{KEY}: {folder} holds no {CONFIG}, which `model: local-dir` wants")
    if sha256 != "none":
        check_digest(folder / WEIGHTS, sha256, KEY)
    model = _created(f"local-dir:{folder}", str(folder))
    shape = json.loads((folder / CONFIG).read_text())["model_cfg"]
    preprocess = open_clip.get_model_preprocess_cfg(model)
    normalisation = {key: list(preprocess[key]) for key in ("mean", "std")}
    return model, {"model_cfg": shape, "preprocess_cfg": normalisation}


def _of_tag(name: str, tag: str, shape: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
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


def _from_file(path: Path, given: TeacherParams, shape: dict[str, Any]) -> Any:
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
        tensors = read_checkpoint(path, KEY)
    model = _created(given.model, given.model)
    tensors = convert_state_dict(model, {name: value.float() for name, value in tensors.items()})
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name, value in model.state_dict().items():  # a single number may be kept as one of a list
        if name in tensors and value.numel() == tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(value.shape)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{KEY}: {path} does not fit {given.model}: {reason(error)}") from None
    return model


def _want_quick_gelu(name: str, shape: dict[str, Any], origin: str) -> None:
    if not shape.get("quick_gelu"):
        raise UserError(
            f"teacher.model in params.yaml: {origin} was trained with QuickGELU, which "
            f"{name} is not; use {name}-quickgelu"
        )


def _created(identifier: str, origin: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return open_clip.create_model(identifier, precision="fp32", device="cpu")
    except Exception as error:  # whatever a folder of the wrong kind, or the hub, makes it raise
        raise UserError(
            f"teacher in params.yaml: {origin} cannot be loaded: {reason(error)}"
        ) from None


def _normalisation(tag: dict[str, Any]) -> dict[str, Any]:
    """The mean and deviation of a tag's input; CLIP's usual ones where it says nothing."""
    usual = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    return {key: tuple(tag.get(key) or usual[key]) for key in usual}


def _usual_preprocessing(name: str) -> dict[str, Any]:
    """The normalisation of the input that the published weights of a model have in common."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = [_normalisation(open_clip.get_pretrained_cfg(name, tag)) for tag in tags]
    if published and all(one == published[0] for one in published):
        return published[0]
    say(f"weights: taking it that {name} was trained with CLIP's usual mean and deviation")
    return _normalisation({})


def keep_tokenizer(given: TeacherParams, config: dict[str, Any], folder: Path) -> None:
    """Keep a tokenizer that is not part of open_clip beside the weights, for use offline."""
    if "hf_tokenizer_name" not in config["model_cfg"].get("text_cfg", {}):
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


def first_weights(note: Note, teacher: Any, checkpoint: str, seed: int) -> dict[str, Tensor]:
    """The backbone's first weights, from where `note["weights"]` says."""
    torch.manual_seed(seed)
    expected = build_backbone(note)[0].state_dict()
    if note["weights"] == "random":
        return expected
    if note["weights"] == "teacher":
        given = teacher.visual.state_dict()
    elif note["weights"] == "checkpoint":
        given = read_checkpoint(Path(checkpoint), STUDENT_KEY)
    else:
        given = read_checkpoint(fetched(note["arch"], note["weights"]), STUDENT_KEY)
    tensors = {}
    for name, value in expected.items():
        known = name if name in given else published_name(note["arch"], name)
        if known not in given or given[known].shape != value.shape:
            raise UserError(
                f"student in params.yaml: the weights do not fit {note['arch']}; they have "
                + (f"{known} in another shape" if known in given else f"no {known}")
            )
        tensors[name] = given[known]
    return tensors


def read_classifier(folder: Path) -> tuple[dict[str, Tensor], Note]:
    """A trained student, from a copy of the folder that `train` writes, and its note."""
    path = folder / CLASSIFIER
    if not path.is_file() or not path.with_suffix(".json").is_file():
        raise UserError(f"{STUDENT_KEY}: {folder} holds no {path.name} with its .json")
    return load_weights(path)


def fetched(arch: str, name: str) -> Path:
    """Where torchvision's published weights are on this machine, downloaded if need be.

    Their file has a digest in its name, which is checked whenever it is read.
    """
    url: str = torchvision.models.get_model_weights(arch)[name].url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        say(f"weights: fetching {arch} {name} through torchvision, once")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"student.weights in params.yaml: {url} cannot be fetched: {reason(error)}"
            ) from None
    return path


if __name__ == "__main__":
    main("weights", run)
