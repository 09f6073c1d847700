"""The published script's steps, restated literally: one image, one crop, one pixel at a time.

Written from a description of what the script does; none of its code is here. What it does on a GPU
in half precision is spelt out. The teacher's tower itself is in single precision.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def load(path: Path, side: int) -> Tensor:
    """The squashed image, normalised as for ImageNet: (3, side, side)."""
    with Image.open(path) as file:
        image = file.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    values = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255
    return torch.stack([(values[c] - MEAN[c]) / STD[c] for c in range(3)])


def embed(tower: Any, image: Tensor) -> Tensor:
    """CLIP's unit embedding of one image of any size; positions interpolated for its grid."""
    height, width = image.shape[-2:]
    x = tower.stem(image[None])
    x = tower.layer4(tower.layer3(tower.layer2(tower.layer1(x))))
    assert x.shape[-2:] == (grid_of(height), grid_of(width))
    pooled = attend(tower.attnpool, x[0])
    return pooled / pooled.norm()


def grid_of(side: int) -> int:
    """How many cells the tower makes of a side, in pixels."""
    return math.ceil(side / 2) // 16


def positions(table: Tensor, rows: int, columns: int) -> Tensor:
    """The positional embedding for a grid: bilinear, pixel centres aligned, the first one kept."""
    side = math.isqrt(len(table) - 1)
    found = [table[0]]
    for r in range(rows):
        for c in range(columns):
            y = min(max((r + 0.5) * side / rows - 0.5, 0.0), side - 1.0)
            z = min(max((c + 0.5) * side / columns - 0.5, 0.0), side - 1.0)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, side - 1), min(z0 + 1, side - 1)
            fy, fz = y - y0, z - z0
            cell = [table[1 + a * side + b] for a in (y0, y1) for b in (z0, z1)]
            upper = (1 - fz) * cell[0] + fz * cell[1]
            lower = (1 - fz) * cell[2] + fz * cell[3]
            found.append((1 - fy) * upper + fy * lower)
    return torch.stack(found)


def attend(pool: Any, features: Tensor) -> Tensor:
    """Attention pooling of one feature map (dim, h, w), every token asking every other."""
    tokens = features.flatten(1).T
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
    tokens = tokens + positions(pool.positional_embedding, *features.shape[1:])
    queries, keys, values = pool.q_proj(tokens), pool.k_proj(tokens), pool.v_proj(tokens)
    width = tokens.shape[1] // pool.num_heads
    answers = []
    for h in range(pool.num_heads):
        part = slice(h * width, (h + 1) * width)
        weights = (queries[:, part] @ keys[:, part].T / math.sqrt(width)).softmax(dim=-1)
        answers.append(weights @ values[:, part])
    answer: Tensor = pool.c_proj(torch.cat(answers, dim=1))[0]
    return answer


def softmax_in_half(image: np.ndarray, texts: np.ndarray, factor: float) -> np.ndarray:
    """Probabilities of one view, every number rounded to half precision on its way."""
    scaled = [np.float16(np.float16(factor) * v) for v in image.astype(np.float16)]
    logits = []
    for text in texts.astype(np.float16):
        total = math.fsum(float(a) * float(b) for a, b in zip(scaled, text, strict=True))
        logits.append(float(np.float16(total)))
    raised = [math.exp(v - max(logits)) for v in logits]
    return np.array([np.float16(v / sum(raised)) for v in raised], np.float32)


def bias_of(p: np.ndarray, limit: float) -> np.ndarray:
    """Mean top-1 probability of each class over the images it is on top of; NaN without one."""
    classes = p.shape[1]
    total, count = [0.0] * classes, [0] * classes
    for row in p:
        if -sum(float(v) * math.log(float(v) + 1e-10) for v in row) <= limit:
            top = int(np.argmax(row))
            total[top] += float(row[top])
            count[top] += 1
    return np.array([t / n if n else math.nan for t, n in zip(total, count, strict=True)])


def initial_label(p: np.ndarray, bias: np.ndarray, floor: float) -> np.ndarray:
    return np.array([min(max(max(v, floor) / b, 0), 1) for v, b in zip(p, bias, strict=True)])


def maps_of(student: Any, head: Any, boost: float, image: Tensor) -> Tensor:
    """The boosted class activation maps (classes, h, w) of one image, by a torchvision ResNet."""
    x = student.maxpool(student.relu(student.bn1(student.conv1(image[None]))))
    x = student.layer4(student.layer3(student.layer2(student.layer1(x))))
    maps = head(x)[0]
    return torch.where(maps > 0, boost * maps, maps)


def threshold_of(scores: np.ndarray, start: float, bound: float) -> float:
    """Upwards from `start`: the first at which bound < count / 100 < bound + 2.

    It counts image by image and looks whenever the image's number, from 0, is a multiple of a
    hundred above 0: so first after 101 images, and never at what comes after the last hundred.
    """
    t, count = start, 0
    for number, row in enumerate(scores):
        count += sum(1 for s in row if s >= t)
        if number and number % 100 == 0:
            if bound < count / 100 < bound + 2:
                return t
            t, count = t + 0.001, 0
    return t


def box_of(cam: Tensor, side: int, threshold: float, offset: int) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of one class's box in the squashed image of `side` pixels."""
    cam = F.interpolate(cam[None, None], size=(side, side), mode="bilinear")[0, 0]
    cam = (cam - cam.min()) / (cam.max() - cam.min() + 1e-5)
    first = last = None
    for y in range(side):
        for x in range(side):
            if cam[y, x] > threshold:
                first, last = first or (y, x), (y, x)
    assert first
    assert last
    (y0, x0), (y1, x1) = first, last
    x0, x1 = min(x0, x1), max(x0, x1)
    return (
        max(x0 - offset, 0), max(y0 - offset, 0), min(x1 + offset, side), min(y1 + offset, side)
    )  # fmt: skip


def crop_size(box: tuple[int, int, int, int], longer: int) -> tuple[int, int]:
    """Height and width of the crop of a box, as tensors of torch's give them.

    A number over an integer tensor is its reciprocal times the number, in single precision.
    """
    x0, y0, x1, y1 = box
    width, height = torch.tensor(x1 - x0), torch.tensor(y1 - y0)
    ratio = longer / torch.max(width, height)
    return int(height * ratio), int(width * ratio)


def crop(image: Tensor, box: tuple[int, int, int, int], longer: int) -> Tensor:
    """The box of the normalised, squashed image, resized."""
    x0, y0, x1, y1 = box
    size = crop_size(box, longer)
    return F.interpolate(image[None, :, y0:y1, x0:x1], size=size, mode="bilinear")[0]


def fused(
    initial: np.ndarray, views: np.ndarray, bias: np.ndarray, floor: float, ratio: float
) -> np.ndarray:
    """The updated label of one image: `views` (views, classes), perhaps none."""
    local = np.vstack([np.zeros((1, len(bias))), views]).max(axis=0)
    local = np.array([max(v, floor) / b for v, b in zip(local, bias, strict=True)])
    return np.clip(ratio * initial + (1 - ratio) * local, 0, 1)


def training_map(labels: np.ndarray, scores: np.ndarray) -> float:
    total = 0.0
    for c in range(labels.shape[1]):
        positive = [bool(v == 1.0) for v in labels[:, c]]
        total += average_precision_score(positive, scores[:, c]) if any(positive) else 0.0
    return 100 * total / labels.shape[1]


def stop_epoch(history: list[float]) -> int | None:
    """Which epoch, counted from 0 over the whole training, is saved."""
    before, gain_before = history[0], 100.0
    for epoch in range(1, len(history)):
        gain = history[epoch] - before
        if gain > gain_before:
            return epoch
        before, gain_before = history[epoch], gain
    return None
