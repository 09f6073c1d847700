"""`ccd doctor`: whether a run can work here, and how long it would take, before it begins.

Reads `params.yaml` and what it names; writes nothing, fetches nothing. The time is measured: the
networks of `params.yaml`, with random weights, for some seconds on this machine.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch

from stages.images.normalise import IMAGENET_MEAN, IMAGENET_STD
from stages.models.backbones import BackboneConfig, Tower
from stages.models.device import device
from stages.models.student import StudentConfig, build_student
from stages.models.teacher import CONFIG, TeacherConfig, empty_model
from stages.runtime.errors import UserError
from stages.runtime.params import NONE, Params
from stages.sources.class_list import class_list
from stages.sources.folder import photographs

FEW_STEPS = 100  # of training, in all
LONG = 12.0  # hours
LOCAL = 0.75  # of a square's pixels that a local view of kept aspect has, about
EMBEDDING = 8192  # bytes a view: embedding, scores, box


class Finding(NamedTuple):
    """What was looked at, what was found, and what to do where something speaks against it."""

    what: str
    found: str
    remedy: str = ""


class Size(NamedTuple):
    """Images in all, images to train on, and classes."""

    images: int
    training: int
    classes: int


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
        return Finding("machine", torch.cuda.get_device_name(where))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    free = shutil.disk_usage(".").free / 2**30
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
    if params.bias.debias and limit >= most:
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
        there = Path(given.checkpoint).exists()
        return Finding(
            "teacher",
            f"{given.checkpoint} is {'there' if there else 'not there'}",
            "" if there else "put it there, or name another in teacher.checkpoint",
        )
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
        f"{given.model} {given.pretrained} is not on this machine; `dvc repro weights` fetches it",
        "without network: fetch it on another machine, copy the file, and name it in "
        f"teacher.checkpoint, with teacher.pretrained: none ({origin_of(config)})",
    )


def kept_of_tag(config: dict[str, str]) -> bool:
    """Whether open_clip has fetched what a tag names."""
    from huggingface_hub import try_to_load_from_cache

    repository = config.get("hf_hub", "").strip("/")
    names = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
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
        there = Path(given.checkpoint).exists()
        return Finding(
            "student",
            f"{given.arch} of {given.checkpoint}, which is {'there' if there else 'not there'}",
            "" if there else "put it there, or name another in student.checkpoint",
        )
    return Finding("student", f"{given.arch}, weights {given.weights}")


def of_time(params: Params, size: Size, seconds: float) -> Finding:
    """How long the networks take for all images, as measured in that many seconds."""
    hours, views = hours_of(params, size, seconds)
    room = (size.images + views) * EMBEDDING / 2**30
    shown = f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.0f} minutes"
    return Finding(
        "time",
        f"about {shown} for the networks, decoding apart; {views:.0f} local views; {room:.1f} GiB "
        "beside weights",
        "" if hours < LONG else "see docs/presets.md: recipe laptop, or instant; or a GPU",
    )


def hours_of(params: Params, size: Size, seconds: float) -> tuple[float, float]:
    """Hours of a whole run of networks, and how many local views it looks at."""
    where = device()
    of_pixel = seconds_a_pixel(params, where, seconds / 2)
    of_image = seconds_an_image(params, where, seconds / 2)
    views = size.training * params.cam_boxes.mean_views
    whole, local = params.global_clip.view_size**2, LOCAL * params.local_clip.view_size**2
    looking = of_pixel * (size.images * whole + views * local)
    optimiser, train = params.optimiser, params.train
    epoch = max(size.training, optimiser.epoch_steps * optimiser.batch)
    passes = params.warmup.epochs + (2 if train.consistency else 1) * train.epochs
    larger = (params.cam_boxes.input_size / params.student.input_size) ** 2
    forward = size.training * (larger + 1) + 2 * size.images  # maps, cuts, evaluation
    learning = of_image * (epoch * passes + forward / 3)
    return (looking + learning) / 3600, views


def seconds_a_pixel(params: Params, where: str, seconds: float) -> float:
    """That the teacher takes, with random weights, at the size it was made for."""
    logging.getLogger().setLevel(logging.ERROR)  # open_clip reports how it builds a model
    given = params.teacher
    name = f"local-dir:{given.checkpoint}" if given.model == "local-dir" else given.model
    if given.model == "local-dir" and not (Path(given.checkpoint) / CONFIG).is_file():
        raise UserError(f"teacher.checkpoint in params.yaml: {given.checkpoint} has no {CONFIG}")
    if given.model != "local-dir" and open_clip.get_model_config(given.model) is None:
        raise UserError(f"teacher.model in params.yaml: open_clip knows no {given.model!r}")
    tower = empty_model(name, where).visual
    native = tower.image_size
    side = native if isinstance(native, int) else native[0]
    pixels = torch.zeros(2, 3, side, side, device=where)
    with torch.inference_mode():
        return usual_time(lambda: tower(pixels), seconds) / 2 / side**2


def seconds_an_image(params: Params, where: str, seconds: float) -> float:
    """That a pass of the student's training takes, with random weights."""
    config = student_of(params)
    student = build_student(config).to(where).train()
    images = min(params.optimiser.batch, 8)
    batch = torch.zeros(images, 3, config.size, config.size, dtype=torch.uint8).to(where)
    return usual_time(lambda: student(batch).mean().backward(), seconds) / images


def student_of(params: Params) -> StudentConfig:
    """A student as `params.yaml` has it, of two classes."""
    given, tower = params.student, None
    if given.arch == "teacher_tower":
        folder = Path(params.teacher.checkpoint)
        shape = (
            TeacherConfig.read(folder).model_cfg.vision_cfg
            if params.teacher.model == "local-dir"
            else open_clip.get_model_config(params.teacher.model)["vision_cfg"]
        )
        tower = Tower.model_validate(shape)
    backbone = BackboneConfig(
        arch=given.arch,
        output_stride=given.output_stride,
        weights="random",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        tower=tower,
    )
    how = {"batch_norm": "batch", "boost": 1.0, "head": "library", "precision": "float32"}
    more = {"size": given.input_size, "classes": ("a", "b")}
    return StudentConfig.model_validate(backbone.model_dump() | how | more)


def usual_time(work: Callable[[], object], seconds: float) -> float:
    """Seconds that it takes, the median of as many times as fit, after one that does not count."""
    work()
    taken: list[float] = []
    begin = time.perf_counter()
    while not taken or time.perf_counter() - begin < seconds:
        before = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - before)
    return float(np.median(taken))
