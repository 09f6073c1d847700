"""What the benchmark looks at: drawn JPEGs of VOC's sizes, and networks with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from PIL import Image

from demo.scenes import draw_photo
from stages.images.decode import inspect
from stages.images.normalise import IMAGENET_MEAN, IMAGENET_STD
from stages.models.student import StudentConfig
from stages.models.weights import TeacherNote, save_weights
from stages.storage.provenance import write_sums

SIZES = ((500, 375), (375, 500), (500, 333), (500, 375), (333, 500))


def write_photos(folder: Path, count: int) -> pd.DataFrame:
    """JPEGs of VOC's sizes, with the index's columns of them."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        image = draw_photo(np.random.default_rng([11, number]))[0]
        image.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC).save(path, quality=92)
        found = inspect(path, 10**8)
        rows.append((path.name, str(path), found.width, found.height, found.sha256))
    return pd.DataFrame(rows, columns=["image_id", "path", "width", "height", "sha256"])


def write_teacher(folder: Path, model: str) -> None:
    """An open_clip model with random weights, as the stage `weights` leaves a teacher."""
    torch.manual_seed(0)
    made = open_clip.create_model(model)
    config = {
        "model_cfg": open_clip.get_model_config(model),
        "preprocess_cfg": {
            "mean": list(open_clip.OPENAI_DATASET_MEAN),
            "std": list(open_clip.OPENAI_DATASET_STD),
        },
    }
    save_weights(folder / "open_clip_model.safetensors", made.state_dict(), TeacherNote())
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    write_sums(folder)


def config_of_student(arch: str, size: int, precision: str) -> StudentConfig:
    """Of a student of 20 classes with random weights."""
    return StudentConfig(
        arch=arch,
        output_stride=32,
        weights="random",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        batch_norm="batch",
        boost=1.0,
        head="library",
        precision=precision,
        size=size,
        classes=tuple(map(str, range(20))),
    )


def boxes_of(photos: pd.DataFrame, each: int) -> pd.DataFrame:
    """Boxes as local views have them: a quarter of the sides and more, anywhere."""
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.25, 0.75, (len(photos) * each, 2))
    corners = rng.uniform(0, 1, sides.shape) * (1 - sides)
    size = photos[["width", "height"]].to_numpy().repeat(each, axis=0)
    edges = np.hstack([np.floor(corners * size), np.ceil((corners + sides) * size)]).astype(int)
    return pd.DataFrame(edges, columns=["x0", "y0", "x1", "y1"])
