"""What students say of images, block by block: a run that is killed goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stages.images.prefetch import load_global_views, split_batches
from stages.models.device import block_size, device
from stages.models.student import Student
from stages.runtime.job import Job
from stages.runtime.resume import in_blocks
from stages.runtime.types import Arrays, Floats


def scores_of(
    job: Job, paths: dict[str, Path], rows: pd.DataFrame, digest: str
) -> dict[str, Floats]:
    """Each student's probabilities (images, classes) of every image in `rows`, decoded once.

    paths: the students' weights, by what they are called; all of one size. digest: of the index
    that they must have been made from.
    """
    where = device()
    students = {key: Student.load(path, where, digest) for key, path in paths.items()}
    student = next(iter(students.values()))
    size = student.config.size
    batch = student.batch_size(size)

    def score(blocks: list[range]) -> Iterator[Arrays]:
        batches = (part for block in blocks for part in split_batches(block, batch))
        views = load_global_views(rows, size, batches)
        for block in blocks:
            of_block: dict[str, list[torch.Tensor]] = {key: [] for key in students}
            for _ in split_batches(block, batch):
                some = next(views)
                for key, each in students.items():
                    of_block[key].append(each.scores(some))
            yield {key: torch.cat(parts).cpu().numpy() for key, parts in of_block.items()}

    called = rows["image_id"].iloc.__getitem__
    scored = in_blocks(job, len(rows), block_size(where), "images", score, called)
    return {key: np.concatenate(list(scored.of(key))) for key in students}
