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
from open_clip.modified_resnet import ModifiedResNet
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stages.artifacts import STUDENT_INIT, TEACHER
from stages.errors import UserError
from stages.job import Job, main
from stages.models.student import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from stages.models.teacher import CONFIG, WEIGHTS
from stages.models.weights import Note, save_weights
from stages.params import NONE, Params
from stages.progress import say


def run(params: Params, job: Job) -> None:
    model, config = load_teacher(
        params.teacher.model, params.teacher.pretrained, params.teacher.checkpoint
    )
    folder = job.staging / TEACHER
    checkpoint = params.teacher.checkpoint
    origin = Path(checkpoint).name if checkpoint != NONE else params.teacher.pretrained
    save_weights(
        folder / WEIGHTS, model.state_dict(), {"model": params.teacher.model, "origin": origin}
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    note = student_note(
        params.student.arch, params.student.output_stride, params.student.weights, model, config
    )
    tensors = first_weights(note, model, params.student.checkpoint, params.seed)
    save_weights(job.staging / STUDENT_INIT, tensors, note)


def load_teacher(name: str, pretrained: str, checkpoint: str) -> tuple[Any, dict[str, Any]]:
    """An open_clip model in float32 on the CPU, and the configuration of its local-dir."""
    logging.getLogger().setLevel(logging.ERROR)  # open_clip reports every step of the loading
    if name == "local-dir":
        if not (Path(checkpoint) / CONFIG).is_file():
            raise UserError(
                f"teacher.checkpoint in params.yaml: {checkpoint} holds no {CONFIG}, which "
                "`model: local-dir` wants"
            )
        identifier, source = f"local-dir:{checkpoint}", None
    else:
        if open_clip.get_model_config(name) is None:
            raise UserError(
                f"teacher.model in params.yaml: open_clip knows no {name!r}; "
                "`python -c 'import open_clip; print(open_clip.list_models())'` lists them"
            )
        if checkpoint == NONE and not open_clip.is_pretrained_cfg(name, pretrained):
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
            raise UserError(
                f"teacher.pretrained in params.yaml: {name} has no {pretrained!r}, but {tags}"
            )
        tag = open_clip.get_pretrained_cfg(name, pretrained) if checkpoint == NONE else {}
        if tag.get("quick_gelu") and not open_clip.get_model_config(name).get("quick_gelu"):
            raise UserError(
                f"teacher.model in params.yaml: {pretrained} was trained with QuickGELU, which "
                f"{name} is not; use {name}-quickgelu"
            )
        identifier, source = name, (checkpoint if checkpoint != NONE else pretrained)
        if checkpoint == NONE:
            say(f"weights: fetching {name} {pretrained} through open_clip, once")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model: Any = open_clip.create_model(
                identifier, pretrained=source, precision="fp32", device="cpu"
            )
    except (
        Exception
    ) as error:  # whatever a file of the wrong kind, or the hub, makes open_clip raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"teacher in params.yaml: {source or checkpoint} cannot be loaded: {reason}"
        ) from None
    if name == "local-dir":
        shape = json.loads((Path(checkpoint) / CONFIG).read_text())["model_cfg"]
    else:
        shape = open_clip.get_model_config(name)
    preprocess = open_clip.get_model_preprocess_cfg(model)
    return model, {
        "model_cfg": shape,
        "preprocess_cfg": {"mean": list(preprocess["mean"]), "std": list(preprocess["std"])},
    }


def student_note(
    arch: str, output_stride: int, weights: str, teacher: Any, config: dict[str, Any]
) -> Note:
    """What `build_backbone` needs to know of the student, and the normalisation of its input."""
    note: Note = {"arch": arch, "output_stride": output_stride, "weights": weights}
    if arch != "teacher_tower":
        note |= {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
        return note
    if not isinstance(teacher.visual, ModifiedResNet):
        raise UserError(
            "student.arch in params.yaml: this teacher's tower is no ResNet; use a resnet"
        )
    note |= {"tower": config["model_cfg"]["vision_cfg"]} | config["preprocess_cfg"]
    return note


def first_weights(note: Note, teacher: Any, checkpoint: str, seed: int) -> dict[str, Tensor]:
    """The backbone's first weights, from where `note["weights"]` says."""
    torch.manual_seed(seed)
    expected = build_backbone(note)[0].state_dict()
    if note["weights"] == "random":
        return expected
    if note["weights"] == "teacher":
        given = teacher.visual.state_dict()
    elif note["weights"] == "checkpoint":
        given = _read_checkpoint(checkpoint)
    else:
        say(f"weights: fetching {note['arch']} {note['weights']} through torchvision, once")
        enum = torchvision.models.get_model_weights(note["arch"])[note["weights"]]
        given = enum.get_state_dict(progress=False, check_hash=True)
    for name, value in expected.items():
        if name not in given or given[name].shape != value.shape:
            raise UserError(
                f"student in params.yaml: the weights do not fit {note['arch']}; they have "
                + (f"{name} in another shape" if name in given else f"no {name}")
            )
    return {name: given[name] for name in expected}


def _read_checkpoint(path: str) -> dict[str, Tensor]:
    if not path.endswith(".safetensors"):
        raise UserError(f"student.checkpoint in params.yaml: {path} is no safetensors file")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"student.checkpoint in params.yaml: {path}: {error}") from None


if __name__ == "__main__":
    main("weights", run)
