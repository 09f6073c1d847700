"""Stage `local_clip`: the teacher looks where the student pointed (section 3.2).

Reads the index, the boxes and the teacher. Writes `data/local_clip.zarr`: embeddings; row i is row
i of `data/cam_boxes.parquet`. Views are cut from the original pixels. Resumes by block.

    python -m stages.local_clip
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

from stages import machine
from stages.artifacts import (
    CAM_BOXES,
    INDEX,
    LOCAL_CLIP,
    TEACHER,
    file_digest,
    index_digest,
    read_table,
    write_store,
)
from stages.images.decode import read_image
from stages.images.views import Pixels, local_view_size, view
from stages.job import Job, main
from stages.models.teacher import Teacher
from stages.params import Params
from stages.resume import Arrays, in_blocks


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    boxes, _ = read_table(CAM_BOXES, digest)
    files = index.set_index("image_id")[["path", "sha256"]]
    teacher = Teacher(TEACHER, machine.device())
    teacher.check_size(params.local_clip.view_size, "local_clip.view_size")

    def embed(rows: range) -> Arrays:
        return {
            "embedding": embed_views(
                boxes.iloc[rows.start : rows.stop], files, teacher, params.local_clip.view_size
            )
        }

    dim = teacher.model.visual.output_dim
    embedding = np.zeros((0, dim), np.float32)
    if len(boxes):
        embedding = in_blocks(job, len(boxes), machine.block(), "views", embed)["embedding"]
    provenance = {
        "index": digest,
        "boxes": file_digest(CAM_BOXES),
        "teacher": teacher.digest,
        "units": "unit vectors",
    }
    write_store(LOCAL_CLIP, {"embedding": embedding}, provenance, job.staging)


def embed_views(
    boxes: pd.DataFrame, files: pd.DataFrame, teacher: Teacher, longer: int
) -> np.ndarray:
    """Embeddings (views, dim) of the views in `boxes`; each image is decoded once.

    Views of all images that come out at one size share batches.
    """
    sized: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = {}
    position = 0
    for image_id, own in boxes.groupby("image_id", sort=False):
        image = read_image(*files.loc[image_id])
        for x0, y0, x1, y1 in own[["x0", "y0", "x1", "y1"]].to_numpy().tolist():
            pixels: Pixels = (x0, y0, x1, y1)
            size = (
                local_view_size(pixels, longer, teacher.stride)
                if teacher.stride
                else (longer, longer)
            )
            sized.setdefault(size, []).append((position, view(image, pixels, size)))
            position += 1
    embedding = None
    for _, views in sorted(sized.items()):
        for start in range(0, len(views), machine.batch()):
            batch = views[start : start + machine.batch()]
            values = teacher.embed_images(torch.stack([pixels for _, pixels in batch])).numpy()
            if embedding is None:
                embedding = np.empty((len(boxes), values.shape[1]), np.float32)
            embedding[[row for row, _ in batch]] = values
    assert embedding is not None
    return embedding


if __name__ == "__main__":
    main("local_clip", run)
