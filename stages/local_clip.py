"""Stage `local_clip`: the teacher looks where the student pointed (section 3.2).

Reads the index, the boxes and the teacher. Writes `data/local_clip.zarr`: embeddings; row i is row
i of `data/cam_boxes.parquet`. Resumes by block.

    python -m stages.local_clip
"""

from __future__ import annotations

import numpy as np

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
from stages.embedding import embed_parts
from stages.images.views import Cutting
from stages.job import Job, main
from stages.models.teacher import Teacher
from stages.params import Params
from stages.resume import Arrays, in_blocks


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    boxes, of_boxes = read_table(CAM_BOXES, digest)
    files = index.set_index("image_id")
    how = params.local_clip
    squashed = of_boxes["side"] if how.source == "resized" else 0
    cutting = Cutting(how.view_size, how.aspect, how.rounding, squashed)
    teacher = Teacher(TEACHER, machine.device())
    teacher.take(
        how.view_size,
        "local_clip.view_size",
        aspect_kept=how.aspect == "keep",
        in_pixels=how.rounding == "pixel",
    )

    def embed(rows: range) -> Arrays:
        part = boxes.iloc[rows.start : rows.stop]
        return {"embedding": embed_parts(part, files, teacher, cutting)}

    embedding = np.zeros((0, teacher.dim), np.float32)
    if len(boxes):
        embedding = in_blocks(job, len(boxes), machine.block(), "views", embed)["embedding"]
    provenance = {
        "index": digest,
        "boxes": file_digest(CAM_BOXES),
        "teacher": teacher.digest,
        "units": "unit vectors",
    }
    write_store(LOCAL_CLIP, {"embedding": embedding}, provenance, job.staging)


if __name__ == "__main__":
    main("local_clip", run)
