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

from experiments.results import judge, write_result
from stages import machine
from stages.artifacts import (
    CLASS_TEXT,
    GLOBAL_CLIP,
    GROUND_TRUTH,
    INDEX,
    TEACHER,
    class_columns,
    index_digest,
    parts_of,
    read_store,
    read_table,
    usable,
)
from stages.embedding import embed_looks, parts_of_images
from stages.errors import UserError
from stages.images.views import Cutting
from stages.job import Job, declaration, main
from stages.labelling import Labeller
from stages.method.average_precision import mean_average_precision
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
    judged = judge(truth, held_out)
    images, _ = read_store(GLOBAL_CLIP, digest)
    texts, of_texts = read_store(CLASS_TEXT)
    if class_columns(GROUND_TRUTH, truth) != of_texts["classes"]:
        raise UserError(f"{GROUND_TRUTH.path} has other classes than the labels: run `dvc repro`")
    labeller = Labeller(params.labels, texts["embedding"], of_texts["temperature"])
    places = index["image_id"].isin(held_out["image_id"]).to_numpy()
    whole = images["embedding"][...][places]
    found = scorers(labeller, whole, embed_tiles(params, job, held_out))
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


def scorers(labeller: Labeller, whole: Floats, tiles: Floats) -> dict[str, Floats]:
    """Scores (images, classes) by name.

    whole (images, dim), tiles (images, tiles, dim): unit vectors.
    """
    found = {}
    for name, score in (("softmax", labeller.probabilities), ("cosine", labeller.similarities)):
        found[name] = score(whole)
        best = np.empty_like(found[name])
        for part in parts_of(len(whole)):
            some = tiles[part]
            of_tiles = score(some.reshape(-1, some.shape[-1])).reshape(*some.shape[:2], -1)
            best[part] = of_tiles.max(axis=1)
        found[f"tiles_{name}"] = (found[name] + best) / 2
    return found


if __name__ == "__main__":
    declared_by = partial(declaration, "training_free", file=Path("experiments/dvc.yaml"))
    main("training_free", run, declared_by=declared_by)
