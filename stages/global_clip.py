"""Stage `global_clip`: the teacher looks at every image as a whole (section 3.1).

Reads the index and the teacher. Writes `data/global_clip.zarr`: embeddings, not probabilities, so
that class names, prompts, temperature and debiasing are free to try. Row i is row i of the index;
the row of an unusable image is NaN. Resumes by block.

    python -m stages.global_clip
"""

from __future__ import annotations

import numpy as np
import torch

from stages import machine
from stages.artifacts import (
    GLOBAL_CLIP,
    INDEX,
    TEACHER,
    index_digest,
    read_table,
    usable,
    write_store,
)
from stages.embedding import embed_parts
from stages.images.loading import Photographs, batches
from stages.images.views import Cutting
from stages.job import Job, main
from stages.models.teacher import Teacher
from stages.params import Params
from stages.resume import Arrays, in_blocks


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    rows = usable(index)
    size, kept = params.global_clip.view_size, params.global_clip.aspect == "keep"
    teacher = Teacher(TEACHER, machine.device())
    teacher.take(size, "global_clip.view_size", aspect_kept=kept)
    photographs = Photographs(rows, size)
    whole = rows.assign(x0=0, y0=0, x1=rows["width"], y1=rows["height"])

    def embed(block: range) -> Arrays:
        if kept:
            boxes = whole.iloc[block.start : block.stop]
            files = rows.set_index("image_id")
            return {"embedding": embed_parts(boxes, files, teacher, Cutting(size))}
        parts = [
            teacher.embed_images(views) for views in batches(photographs, block, machine.batch())
        ]
        return {"embedding": torch.cat(parts).numpy()}

    computed = in_blocks(job, len(photographs), machine.block(), "images", embed)["embedding"]
    embedding = np.full((len(index), computed.shape[1]), np.nan, np.float32)
    embedding[(index["status"] == "ok").to_numpy()] = computed
    provenance = {"index": index_digest(index), "teacher": teacher.digest, "units": "unit vectors"}
    write_store(
        GLOBAL_CLIP,
        {"embedding": embedding},
        provenance,
        job.staging,
        labels={"image": index["image_id"]},
    )


if __name__ == "__main__":
    main("global_clip", run)
