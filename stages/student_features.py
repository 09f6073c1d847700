"""Stage `student_features`: the student's first weights look at every image (of this project).

Reads the index and the first weights. Writes `data/student_features.zarr`: the pooled features of
each image and of its mirror image, to which heads are fitted in closed form without a look at the
images. Row i is row i of the index; the row of an unusable image is NaN. Where the warm-up trains
the student nobody asks for them, and there are none. Resumes by block.

    python -m stages.student_features
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from stages.artifacts import STUDENT_FEATURES, STUDENT_INIT
from stages.images.prefetch import load_global_views, split_batches
from stages.models.backbones import BackboneConfig
from stages.models.device import block_size, device
from stages.models.student import StudentConfig, first_student
from stages.models.weights import load_weights
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.resume import in_blocks
from stages.runtime.types import Arrays
from stages.storage.arrays import Rows, with_gaps, write_store
from stages.storage.index import read_index, usable
from stages.storage.provenance import Provenance

HEAD_NOT_ASKED = {"batch_norm": "frozen", "boost": 1.0, "head": "library"}


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    rows, where, size = usable(index), device(), params.student.input_size
    tensors, first = load_weights(STUDENT_INIT, BackboneConfig)
    provenance: Provenance = {"index": digest, "student": first.sha256, "side": size}
    pooled = Rows(0, [np.zeros((0, 2, 1), np.float32)])
    if params.warmup.epochs == 0 and params.warmup.head == "closed_form":
        how = {"precision": params.student.precision, "size": size}
        classes = {"classes": first.classes or ("",)}
        said = first.model_dump() | HEAD_NOT_ASKED | how | classes
        student = first_student(tensors, first, StudentConfig.model_validate(said))
        student.for_inference(where).eval()
        batch = student.batch_size(size)

        def look(blocks: list[range]) -> Iterator[Arrays]:
            batches = (part for block in blocks for part in split_batches(block, batch))
            views = load_global_views(rows, size, batches)
            for block in blocks:
                seen = [student.pooled_features(next(views)) for _ in split_batches(block, batch)]
                yield {"pooled": torch.cat(seen).cpu().numpy()}

        called = rows["image_id"].iloc.__getitem__
        computed = in_blocks(job, len(rows), block_size(where), "images", look, called)
        there = (index["status"] == "ok").to_numpy()
        pooled = Rows(len(index), with_gaps(computed.of("pooled"), there))
    write_store(STUDENT_FEATURES, {"pooled": pooled}, provenance, job.staging)


if __name__ == "__main__":
    main("student_features", run, on_ranks=True)
