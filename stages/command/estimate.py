"""How long the networks of a run would take, measured for some seconds with random weights."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
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
from stages.runtime.params import Params

LOCAL = 0.75  # of a square's pixels that a local view of kept aspect has, about


class Size(NamedTuple):
    """Images in all, images to train on, and classes."""

    images: int
    training: int
    classes: int


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
    known = {} if given.model == "local-dir" else open_clip.get_model_config(given.model)
    if known is None:
        raise UserError(f"teacher.model in params.yaml: open_clip knows no {given.model!r}")
    if "hf_model_name" in known.get("text_cfg", {}):  # it would be fetched
        raise UserError(f"teacher.model in params.yaml: {given.model} has a text encoder of others")
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
        if not isinstance(shape.get("layers"), list | tuple):
            raise UserError(
                "student.arch in params.yaml: this teacher's tower is no ResNet; use another arch"
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
        elif torch.backends.mps.is_available():
            torch.mps.synchronize()
        taken.append(time.perf_counter() - before)
    return float(np.median(taken))
