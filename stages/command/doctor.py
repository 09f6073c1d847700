"""`ccd doctor`: whether a run can work here, and how long it would take, before it begins.

Reads `params.yaml` and what it names; writes nothing, fetches nothing. The time is measured: the
networks of `params.yaml`, with random weights, for some seconds on this machine.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch

from stages.command.estimate import Size, hours_of
from stages.models.device import device
from stages.runtime.params import NONE, Params
from stages.sources.class_list import class_list
from stages.sources.folder import photographs

FEW_STEPS = 100  # of training, in all
LONG = 12.0  # hours
EMBEDDING = 8192  # bytes a view: embedding, scores, box


class Finding(NamedTuple):
    """What was looked at, what was found, and what to do where something speaks against it."""

    what: str
    found: str
    remedy: str = ""


def examine(params: Params, seconds: float) -> Iterator[Finding]:
    """Findings one after the other. seconds: that the measurement may take; 0: none is made."""
    yield of_machine()
    size = size_of(params)
    if size is None:
        yield Finding("photographs", f"as {params.source.kind} is published; `index` counts them")
    else:
        yield Finding(
            "photographs",
            f"{size.images}, {size.training} of them to train on; {size.classes} classes",
            "" if size.training else "all are below source.test_folder: none is left to train on",
        )
        yield from of_settings(params, size)
    yield of_teacher(params)
    yield of_student(params)
    if seconds and size is not None and size.training:
        yield of_time(params, size, seconds)


def of_machine() -> Finding:
    """What computes."""
    where = device()
    if where.startswith("cuda"):
        where = torch.cuda.get_device_name(where)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(".").free / 2**30
    if shutil.which("python") is None:
        return Finding(
            "machine", "no `python` on PATH, which dvc.yaml calls", "activate the environment"
        )
    return Finding(
        "machine",
        f"{where}, {cores} cores, {memory:.0f} GiB of memory, {free:.0f} GiB free on this disk",
        "make room: weights and results take some GiB" if free < 5 else "",
    )


def size_of(params: Params) -> Size | None:
    """Of a user's own folder; None for a published data set."""
    if params.source.kind != "folder":
        return None
    found, _ = photographs(params.source.root, params.source.test_folder)
    training = sum(photo.split == "train" for photo in found)
    return Size(len(found), training, len(class_list(params.source.classes)))


def of_settings(params: Params, size: Size) -> Iterator[Finding]:
    """What cannot work with so many images and classes."""
    limit, unit = params.bias.entropy_limit, params.bias.entropy_unit
    most = math.log(max(size.classes, 2)) if unit == "nats" else 1.0
    if size.classes < 2:
        yield Finding(
            "classes",
            "one, of which CLIP cannot say how likely it is: its probabilities are of several",
            "name some that it is not, such as what else the photographs show",
        )
        return
    if (params.bias.debias or params.fuse_labels.debias) and limit >= most:
        yield Finding(
            "bias.entropy_limit",
            f"{limit} {unit} is no less than a uniform guess's {most:.2f}: it filters nothing",
            "set bias.entropy_unit: normalised and bias.entropy_limit: 0.6",
        )
    looks = params.cam_boxes
    if looks.views == "cam" and looks.selection != "fixed" and looks.mean_views >= size.classes:
        yield Finding(
            "cam_boxes.mean_views",
            f"{looks.mean_views:g} views an image of {size.classes} classes: none is left out",
            f"set it to {max(1, size.classes // 2)}, half of the classes",
        )
    steps = steps_of(params, size.training)
    if 0 < steps < FEW_STEPS:
        passes = math.ceil(FEW_STEPS / max(params.warmup.epochs + params.train.epochs, 1))
        yield Finding(
            "steps of training",
            f"{steps} in all: a student may learn nothing in so few",
            f"set optimiser.epoch_steps to {max(50, passes)}, so that images are passed over again",
        )


def steps_of(params: Params, images: int) -> int:
    """Of warm-up and training together, at most."""
    optimiser = params.optimiser
    epoch = max(math.ceil(images / optimiser.batch), optimiser.epoch_steps)
    return epoch * (params.warmup.epochs + params.train.epochs)


def of_teacher(params: Params) -> Finding:
    """Whether its weights are on this machine."""
    given = params.teacher
    if given.checkpoint != NONE:
        return of_file("teacher", given.checkpoint)
    config = open_clip.get_pretrained_cfg(given.model, given.pretrained)
    if not config:
        return Finding(
            "teacher",
            f"open_clip has no {given.pretrained!r} of {given.model!r}",
            "`python -c 'import open_clip; print(open_clip.list_pretrained())'` lists what it has",
        )
    if kept_of_tag(config):
        return Finding("teacher", f"{given.model} {given.pretrained} is on this machine")
    return Finding(
        "teacher",
        f"{given.model} {given.pretrained} is not on this machine: `dvc repro weights` fetches it. "
        "Without network, fetch it on another machine, copy the file, and name it in "
        f"teacher.checkpoint, with teacher.pretrained: none ({origin_of(config)})",
    )


def of_file(section: str, checkpoint: str) -> Finding:
    """Whether the weights that a section of `params.yaml` names are there."""
    if Path(checkpoint).exists():
        return Finding(section, f"{checkpoint} is there")
    remedy = f"put it there, or name another in {section}.checkpoint"
    return Finding(section, f"{checkpoint} is not there", remedy)


def kept_of_tag(config: dict[str, str]) -> bool:
    """Whether open_clip has fetched what a tag names."""
    from huggingface_hub import try_to_load_from_cache

    repository, file = os.path.split(config.get("hf_hub", ""))
    names = (file,) if file else ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    if repository and any(
        isinstance(try_to_load_from_cache(repository, name), str) for name in names
    ):
        return True
    url = config.get("url", "")
    return bool(url) and (Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]).exists()


def origin_of(config: dict[str, str]) -> str:
    """Where a tag's file is published."""
    return config.get("url") or f"the hub's {config.get('hf_hub', '').strip('/')}"


def of_student(params: Params) -> Finding:
    """What its first weights are, and whether a file of them is there."""
    given = params.student
    if given.checkpoint != NONE:
        return of_file("student", given.checkpoint)
    fetched = given.weights.startswith("IMAGENET") or given.weights == "published"
    how = "; `dvc repro weights` fetches them if they are not here" if fetched else ""
    return Finding("student", f"{given.arch}, weights {given.weights}{how}")


def of_time(params: Params, size: Size, seconds: float) -> Finding:
    """How long the networks take for all images, as measured in that many seconds."""
    try:
        hours, views = hours_of(params, size, seconds)
    except (MemoryError, RuntimeError) as error:  # torch's own errors of memory are of the latter
        if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
            raise
        return Finding(
            "time",
            "not measured: the networks do not fit into this memory",
            "take smaller views or networks, as recipe laptop has them",
        )
    room = (size.images + views) * EMBEDDING / 2**30
    shown = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return Finding(
        "time",
        f"about {shown} for the networks, decoding apart; {views:.0f} local views; {room:.1f} GiB "
        "beside weights",
        "" if hours < LONG else "see docs/presets.md: recipe laptop, or instant; or a GPU",
    )
