"""What CLIP says of held-out images without any training, from the whole image and from tiles.

    python -m experiments.table1

Reads the index, the embeddings of images and class names, the teacher and, to judge, the ground
truth. Writes `results/table1/training_free.json`: the mean average precision of probabilities and
of cosines, of the whole image alone and of its mean with the best of nine tiles. Resumes by block.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.results import aligned, write_result
from stages import machine
from stages.artifacts import (
    CLASS_TEXT,
    GLOBAL_CLIP,
    GROUND_TRUTH,
    INDEX,
    TEACHER,
    class_columns,
    index_digest,
    read_store,
    read_table,
    usable,
)
from stages.embedding import embed_looks, parts_of_images
from stages.errors import UserError
from stages.images.views import Cutting
from stages.job import Job, declaration, main
from stages.method.average_precision import mean_average_precision
from stages.method.similarity import class_probabilities
from stages.method.types import Floats
from stages.method.views import box_in_pixels, grid_boxes
from stages.models.teacher import Teacher
from stages.params import Params
from stages.progress import say
from stages.resume import Arrays, in_blocks

SIDE = 3  # tiles a side


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    held_out = usable(index, "test")
    truth, _ = read_table(GROUND_TRUTH, digest)
    judged = aligned(truth, held_out)
    if np.isnan(judged).all():
        raise UserError("no test image has a label: see source.labels in params.yaml")
    images, _ = read_store(GLOBAL_CLIP, digest)
    texts, of_texts = read_store(CLASS_TEXT)
    if class_columns(GROUND_TRUTH, truth) != of_texts["classes"]:
        raise UserError(f"{GROUND_TRUTH.path} has other classes than the labels: run `dvc repro`")
    learned = params.labels.temperature == "learned"
    temperature = of_texts["temperature"] if learned else float(params.labels.temperature)
    places = index["image_id"].isin(held_out["image_id"]).to_numpy()
    whole = images["embedding"][...][places]
    found = scorers(whole, embed_tiles(params, job, held_out), texts["embedding"][...], temperature)
    result = {name: round(100 * mean_average_precision(judged, s), 2) for name, s in found.items()}
    write_result(job, "training_free", result)
    say(f"training_free: {result}")


def embed_tiles(params: Params, job: Job, rows: pd.DataFrame) -> Floats:
    """Embeddings (images, tiles, dim) of the tiles of the index's `rows`."""
    how, device = params.local_clip, machine.device()
    tiles = SIDE**2
    width, height = (np.repeat(rows[side].to_numpy(), tiles) for side in ("width", "height"))
    edges = box_in_pixels(np.tile(grid_boxes(SIDE), (len(rows), 1)), width, height)
    looks = partial(parts_of_images, rows, np.repeat(np.arange(len(rows)), tiles), edges)
    teacher = Teacher(TEACHER, device, how.precision)
    teacher.take(how.view_size, "local_clip.view_size", aspect_kept=how.aspect == "keep")
    cutting = Cutting(how.view_size, how.aspect)

    def embed(blocks: list[range]) -> Iterator[Arrays]:
        return embed_looks(looks, blocks, teacher, cutting)

    computed = in_blocks(job, len(edges), machine.block(device), "tiles", embed)
    embeddings = np.concatenate(list(computed.of("embedding")))
    return embeddings.reshape(len(rows), tiles, -1)


def scorers(whole: Floats, tiles: Floats, text: Floats, temperature: float) -> dict[str, Floats]:
    """Scores (images, classes) by name.

    whole (images, dim), tiles (images, tiles, dim), text (classes, dim): unit vectors.
    """
    p = class_probabilities(whole, text, temperature)
    flat = tiles.reshape(-1, tiles.shape[-1])
    of_tiles = class_probabilities(flat, text, temperature).reshape(*tiles.shape[:2], -1)
    cosine, cosine_of_tiles = whole @ text.T, tiles @ text.T
    return {
        "softmax": p,
        "cosine": cosine,
        "tiles_softmax": (p + of_tiles.max(axis=1)) / 2,
        "tiles_cosine": (cosine + cosine_of_tiles.max(axis=1)) / 2,
    }


if __name__ == "__main__":
    declared_by = partial(declaration, "training_free", file=Path("experiments/dvc.yaml"))
    main("training_free", run, declared_by=declared_by)
