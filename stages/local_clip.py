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

from stages.artifacts import CAM_BOXES, LOCAL_CLIP, TEACHER
from stages.images.crops import CropRule
from stages.models.device import block_size, device
from stages.models.embedding import box_views, embed_views
from stages.models.teacher import Teacher
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.resume import in_blocks
from stages.runtime.types import Arrays
from stages.storage.arrays import Rows, write_store
from stages.storage.index import read_index
from stages.storage.provenance import Provenance, file_digest
from stages.storage.tables import read_table


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    how, where = params.local_clip, device()
    edges = ["u0", "v0", "u1", "v1"] if how.source == "resized" else ["x0", "y0", "x1", "y1"]
    boxes, of_boxes = read_table(CAM_BOXES, digest, columns=["image_id", *edges])
    image = pd.Index(index["image_id"]).get_indexer(pd.Index(boxes["image_id"]))
    views_of = partial(box_views, index, image, boxes[edges].to_numpy())
    squashed = of_boxes["side"] if how.source == "resized" else 0
    rule = CropRule(how.view_size, how.aspect, how.rounding, squashed)
    teacher = Teacher(TEACHER, where, how.precision)
    teacher.use(how.engine, "local_clip.engine")
    teacher.prepare(
        how.view_size,
        "local_clip.view_size",
        aspect_kept=how.aspect == "keep",
        in_pixels=how.rounding == "pixel",
    )

    def embed(blocks: list[range]) -> Iterator[Arrays]:
        return embed_views(views_of, blocks, teacher, rule)

    embedding = Rows(0, [np.zeros((0, teacher.dim), np.float32)])
    if len(boxes):
        of_view = boxes["image_id"].iloc.__getitem__
        computed = in_blocks(job, len(boxes), block_size(where), "views", embed, of_view)
        embedding = Rows(len(boxes), computed.of("embedding"))
    provenance: Provenance = {
        "index": digest,
        "boxes": file_digest(CAM_BOXES.path),
        "teacher": teacher.digest,
        "units": "unit vectors",
    }
    if how.engine != "torch":
        provenance["engine"] = how.engine
    write_store(LOCAL_CLIP, {"embedding": embedding}, provenance, job.staging)


if __name__ == "__main__":
    main("local_clip", run, on_ranks=True)
