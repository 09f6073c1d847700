"""Rows a to d: the pipeline's work on files against the bare network on tensors in memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.made_up import boxes_of, config_of_student, write_photos, write_teacher
from bench.published import look_at_crops
from stages.images.crops import CropRule
from stages.images.normalise import IMAGENET_MEAN, IMAGENET_STD, normalise
from stages.method.objective import Objective, consistency_loss, label_loss
from stages.models.attention import interpolate_positions
from stages.models.device import block_size, device
from stages.models.embedding import box_views, embed_views, whole_image_views
from stages.models.student import build_student, logits_of
from stages.models.teacher import Teacher
from stages.runtime.job import Job
from stages.runtime.params import Optimiser
from stages.runtime.resume import in_blocks
from stages.runtime.types import Integers
from stages.training.loop import Recipe, Trainer

Row = Mapping[str, str | float | list[float] | list[int]]  # of the table, by column
Timed = Callable[[], float]  # does the work and returns how much: images, or megapixels


def compare(name: str, one: Timed, other: Timed, rounds: int, where: str) -> Row:
    """Rate of `one` over that of `other`, alternately measured; the first round does not count.

    where: the device.
    """
    rates: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        pair = []
        for work in (one, other):
            began = time.perf_counter()
            done = work()
            if where.startswith("cuda"):
                torch.cuda.synchronize()
            pair.append(done / (time.perf_counter() - began))
        rates.append((pair[0], pair[1]))
    ratios = sorted(first / second for first, second in rates[1:])
    return {
        "row": name,
        "ratio": float(np.median(ratios)),
        "least": ratios[0],
        "most": ratios[-1],
        "rounds": rounds,
    }


def inference(
    folder: Path, model: str, precision: str, size: int, images: int, each: int, rounds: int
) -> Iterator[Row]:
    """Rows a, b and c."""
    where = device()
    photos = write_photos(folder / "photos", images)
    write_teacher(folder / "teacher", model)
    teacher = Teacher(folder / "teacher", where, precision)
    teacher.prepare(size, "size", aspect_kept=True)
    yield {"row": "batch", "ratio": teacher.batch}
    boxes = boxes_of(photos, each)
    image = np.arange(len(photos)).repeat(each)
    edges = boxes.to_numpy()

    def work(views_of: Any, count: int, rule: CropRule, done: float) -> float:
        shutil.rmtree(folder / ".ccd", ignore_errors=True)
        compute = partial(embed_views, views_of, teacher=teacher, rule=rule)
        blocks = in_blocks(
            Job("bench", "x"), count, block_size(where), "views", lambda b: compute(blocks=b)
        )
        assert sum(map(len, blocks.of("embedding"))) == count
        return done

    square = partial(
        work,
        partial(whole_image_views, photos),
        images,
        CropRule(size, "square"),
        images * size**2 / 1e6,
    )
    sides = edges[:, 2:] - edges[:, :2]
    steps = np.maximum(np.round(sides * size / sides.max(axis=1, keepdims=True) / 32), 1)
    pixels = float((steps * 32).prod(axis=1).sum()) / 1e6
    parts = partial(box_views, photos, image, edges)
    local = partial(work, parts, len(edges), CropRule(size), pixels)

    views = torch.randint(0, 256, (teacher.batch, 3, size, size), dtype=torch.uint8)
    inputs = normalise(views.to(where), teacher.mean, teacher.std).to(teacher.precision)
    plain: Any = open_clip.create_model(f"local-dir:{folder / 'teacher'}", device=where).visual
    plain = at_size(plain.eval(), size).to(teacher.precision, memory_format=torch.channels_last)
    passes = max(1, images // teacher.batch)

    @torch.inference_mode()
    def bare(tower: Callable[[Tensor], Tensor]) -> float:
        for _ in range(passes):
            tower(inputs)
        return passes * len(inputs) * size**2 / 1e6

    folded = partial(bare, teacher.embed_inputs)
    yield compare("a: global views ÷ bare tower", square, partial(bare, plain), rounds, where)
    yield compare("a: … ÷ bare tower, folded", square, folded, rounds, where)
    yield compare("b: local views ÷ bare tower", local, partial(bare, plain), rounds, where)
    yield compare("b: … ÷ bare tower, folded", local, folded, rounds, where)
    if where.startswith("cuda"):
        yield from ceiling(plain, inputs, folded)
    literal: Any = open_clip.create_model(f"local-dir:{folder / 'teacher'}", device=where).visual
    crops = in_squashed(photos, edges, each, size)
    few = [
        (Path(path), own) for path, own in zip(photos["path"][: images // 4], crops, strict=False)
    ]

    def published() -> float:
        return look_at_crops(literal, few, size, where) / 1e6

    literal.eval().to(torch.float16 if where.startswith("cuda") else torch.float32)
    yield compare("c: local views ÷ one crop at a time", local, published, rounds, where)


def at_size(tower: Any, size: int) -> Any:
    """open_clip's own tower, its positions interpolated once for a square of that size."""
    side = size // 32
    table = tower.attnpool.positional_embedding
    tower.attnpool.positional_embedding = torch.nn.Parameter(
        interpolate_positions(table.detach(), side, side, "bilinear")
    )
    return tower


def in_squashed(
    photos: pd.DataFrame, edges: Integers, each: int, size: int
) -> list[list[tuple[int, int, int, int]]]:
    """The boxes of each photo, in pixels of the image squashed to a square."""
    found = []
    for number, photo in enumerate(photos.itertuples()):
        scale = size / np.array([photo.width, photo.height] * 2, float)
        own = (edges[number * each : (number + 1) * each] * scale).astype(int).tolist()
        found.append([(x0, y0, x1, y1) for x0, y0, x1, y1 in own])
    return found


def ceiling(tower: Any, inputs: Tensor, folded: Timed) -> Iterator[Row]:
    """On a GPU: memory, and the share of the rate of a large convolution in that precision."""
    yield {"row": "peak memory, GB", "ratio": torch.cuda.max_memory_allocated() / 2**30}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tower(inputs)
    per_megapixel = counter.get_total_flops() / (inputs.shape[0] * inputs.shape[2] ** 2 / 1e6)
    x = torch.randn(64, 1024, 40, 40, dtype=inputs.dtype, device=inputs.device)
    x = x.contiguous(memory_format=torch.channels_last)
    convolution = torch.nn.Conv2d(1024, 1024, 3, padding=1, device=x.device, dtype=x.dtype)
    convolution.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def large() -> float:
        for _ in range(20):
            convolution(x)
        return 20.0 * 2 * x.numel() * 1024 * 9

    def flops() -> float:
        return float(folded() * per_megapixel)

    yield compare("tower's FLOP/s ÷ a large convolution's", flops, large, 5, "cuda")


def training(
    folder: Path, images: int, size: int, precision: str, rounds: int, arch: str = "resnet50"
) -> Iterator[Row]:
    """Row d: an epoch from files, both views, against the bare network on tensors in memory."""
    where = device()
    batch = 16
    photos = write_photos(folder / arch, images)
    config = config_of_student(arch, size, precision)
    labels = torch.rand(images, 20, generator=torch.Generator().manual_seed(0))
    settings = Optimiser(batch=batch, epoch_steps=0, lr=1e-5, head_lr_factor=10, held_out=0)
    recipe = Recipe(1, settings, 0, positive=0.5, consistency=1.0, jitter=(0.5,) * 4)
    student = build_student(config).to(where)

    def epoch() -> float:
        shutil.rmtree(folder / ".ccd", ignore_errors=True)
        trainer = Trainer(Job("bench", "x"), student, photos, Objective(labels), recipe)
        for _ in trainer.states(moments={}):
            pass
        return images

    network = build_student(config).to(where).train()
    views = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=where)
    inputs = normalise(views, IMAGENET_MEAN, IMAGENET_STD)
    targets = labels[:batch].to(where)
    mixed = torch.autocast(where.partition(":")[0], torch.bfloat16, enabled=precision == "bfloat16")

    def bare() -> float:
        for _ in range(images // batch):
            network.zero_grad()
            with mixed:
                weak_logits, strong_logits = (
                    logits_of(network.class_activation_maps(inputs).float()) for _ in range(2)
                )
            loss = label_loss(weak_logits, targets) + consistency_loss(weak_logits, strong_logits)
            torch.autograd.backward([loss])
        return images // batch * batch

    name = f"d: training {arch.removeprefix('timm/')} from files ÷ bare forward and backward"
    yield compare(name, epoch, bare, rounds, where)
