"""Rows a to d: the pipeline's work on files against the bare network on tensors in memory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.made_up import boxes_of, write_photos, write_teacher
from bench.published import look_at_crops
from stages import machine
from stages.embedding import embed_looks, parts_of_images, whole_images
from stages.images.augment import normalise
from stages.images.views import Cutting
from stages.job import Job
from stages.method.objective import consistency_loss, label_loss
from stages.method.types import Integers
from stages.models.student import IMAGENET_MEAN, IMAGENET_STD, build_student, logits_of
from stages.models.teacher import Teacher, interpolate_positions
from stages.params import Optimiser
from stages.resume import in_blocks
from stages.training import Recipe, train_epochs

Row = dict[str, Any]
Timed = Callable[[], float]  # does the work and returns how much: images, or megapixels


def compare(name: str, one: Timed, other: Timed, rounds: int, device: str) -> Row:
    """Rate of `one` over that of `other`, alternately measured; the first round does not count."""
    rates: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        pair = []
        for work in (one, other):
            began = time.perf_counter()
            done = work()
            if device.startswith("cuda"):
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
    device = machine.device()
    photos = write_photos(folder / "photos", images)
    write_teacher(folder / "teacher", model)
    teacher = Teacher(folder / "teacher", device, precision)
    teacher.take(size, "size", aspect_kept=True)
    yield {"row": "batch", "ratio": teacher.batch}
    boxes = boxes_of(photos, each)
    image = np.arange(len(photos)).repeat(each)
    edges = boxes.to_numpy()

    def work(looks: Any, count: int, cutting: Cutting, done: float) -> float:
        shutil.rmtree(folder / ".ccd", ignore_errors=True)
        compute = partial(embed_looks, looks, teacher=teacher, cutting=cutting)
        blocks = in_blocks(
            Job("bench", "x"), count, machine.block(device), "views", lambda b: compute(blocks=b)
        )
        assert sum(map(len, blocks.of("embedding"))) == count
        return done

    square = partial(
        work, partial(whole_images, photos), images, Cutting(size, "square"), images * size**2 / 1e6
    )
    sides = edges[:, 2:] - edges[:, :2]
    steps = np.maximum(np.round(sides * size / sides.max(axis=1, keepdims=True) / 32), 1)
    pixels = float((steps * 32).prod(axis=1).sum()) / 1e6
    parts = partial(parts_of_images, photos, image, edges)
    local = partial(work, parts, len(edges), Cutting(size), pixels)

    views = torch.randint(0, 256, (teacher.batch, 3, size, size), dtype=torch.uint8)
    inputs = normalise(views.to(device), teacher.mean, teacher.std).to(teacher.precision)
    plain: Any = open_clip.create_model(f"local-dir:{folder / 'teacher'}", device=device).visual
    plain = at_size(plain.eval(), size).to(teacher.precision, memory_format=torch.channels_last)
    passes = max(1, images // teacher.batch)

    @torch.inference_mode()
    def bare(tower: Callable[[Tensor], Tensor]) -> float:
        for _ in range(passes):
            tower(inputs)
        return passes * len(inputs) * size**2 / 1e6

    folded = partial(bare, teacher.embed_inputs)
    yield compare("a: global views ÷ bare tower", square, partial(bare, plain), rounds, device)
    yield compare("a: … ÷ bare tower, folded", square, folded, rounds, device)
    yield compare("b: local views ÷ bare tower", local, partial(bare, plain), rounds, device)
    yield compare("b: … ÷ bare tower, folded", local, folded, rounds, device)
    if device.startswith("cuda"):
        yield from ceiling(plain, inputs, folded)
    literal: Any = open_clip.create_model(f"local-dir:{folder / 'teacher'}", device=device).visual
    crops = in_squashed(photos, edges, each, size)
    few = [
        (Path(path), own) for path, own in zip(photos["path"][: images // 4], crops, strict=False)
    ]

    def published() -> float:
        return look_at_crops(literal, few, size, device) / 1e6

    literal.eval().to(torch.float16 if device.startswith("cuda") else torch.float32)
    yield compare("c: local views ÷ one crop at a time", local, published, rounds, device)


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


def training(folder: Path, images: int, size: int, precision: str, rounds: int) -> Iterator[Row]:
    """Row d: an epoch from files, both views, against the bare network on tensors in memory."""
    device = machine.device()
    classes, batch = 20, 16
    photos = write_photos(folder / "training", images)
    note = {
        "arch": "resnet50", "output_stride": 32, "boost": 1.0, "head": "library", "size": size,
        "batch_norm": "batch", "precision": precision, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
    }  # fmt: skip
    labels = np.random.default_rng(0).uniform(0, 1, (images, classes)).astype(np.float32)
    recipe = Recipe(1, Optimiser(batch=batch, lr=1e-5, head_lr_factor=10), 1.0, (0.5,) * 4, 0.5)
    student = build_student(note, classes).to(device)

    def epoch() -> float:
        shutil.rmtree(folder / ".ccd", ignore_errors=True)
        for _ in train_epochs(Job("bench", "x"), student, note, photos, labels, recipe, {}, 0):
            pass
        return images

    network = build_student(note, classes).to(device).train()
    views = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=device)
    inputs = normalise(views, IMAGENET_MEAN, IMAGENET_STD)
    targets = torch.from_numpy(labels[:batch]).to(device)
    mixed = torch.autocast(
        device.partition(":")[0], torch.bfloat16, enabled=precision == "bfloat16"
    )

    def bare() -> float:
        for _ in range(images // batch):
            network.zero_grad()
            with mixed:
                weak_logits, strong_logits = (logits_of(network(inputs).float()) for _ in range(2))
            loss = label_loss(weak_logits, targets) + consistency_loss(weak_logits, strong_logits)
            torch.autograd.backward([loss])
        return images // batch * batch

    yield compare("d: training from files ÷ bare forward and backward", epoch, bare, rounds, device)
