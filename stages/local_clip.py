"""Stage `local_clip`: the teacher looks where the student pointed (section 3.2).

Reads the index, the boxes and the teacher. Writes `data/local_clip.zarr`: embeddings; row i is row
i of `data/cam_boxes.parquet`. Resumes by block.

    python -m stages.local_clip
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pandas as pd

from stages import machine
from stages.artifacts import (
    CAM_BOXES,
    INDEX,
    LOCAL_CLIP,
    TEACHER,
    Rows,
    file_digest,
    index_digest,
    read_table,
    write_store,
)
from stages.embedding import embed_looks, parts_of_images
from stages.images.views import Cutting
from stages.job import Job, main
from stages.models.teacher import Teacher
from stages.params import Params
from stages.resume import Arrays, in_blocks


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    how, device = params.local_clip, machine.device()
    edges = ["u0", "v0", "u1", "v1"] if how.source == "resized" else ["x0", "y0", "x1", "y1"]
    boxes, of_boxes = read_table(CAM_BOXES, digest, columns=["image_id", *edges])
    image = pd.Index(index["image_id"]).get_indexer(pd.Index(boxes["image_id"]))
    looks = partial(parts_of_images, index, image, boxes[edges].to_numpy())
    squashed = of_boxes["side"] if how.source == "resized" else 0
    cutting = Cutting(how.view_size, how.aspect, how.rounding, squashed)
    teacher = Teacher(TEACHER, device, how.precision)
    teacher.take(
        how.view_size,
        "local_clip.view_size",
        aspect_kept=how.aspect == "keep",
        in_pixels=how.rounding == "pixel",
    )

    def embed(blocks: list[range]) -> Iterator[Arrays]:
        return embed_looks(looks, blocks, teacher, cutting)

    embedding = Rows(0, [np.zeros((0, teacher.dim), np.float32)])
    if len(boxes):
        computed = in_blocks(job, len(boxes), machine.block(device), "views", embed)
        embedding = Rows(len(boxes), computed.of("embedding"))
    provenance = {
        "index": digest,
        "boxes": file_digest(CAM_BOXES),
        "teacher": teacher.digest,
        "units": "unit vectors",
    }
    write_store(LOCAL_CLIP, {"embedding": embedding}, provenance, job.staging)


if __name__ == "__main__":
    main("local_clip", run, on_ranks=True)
