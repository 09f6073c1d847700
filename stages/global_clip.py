"""Stage `global_clip`: the teacher looks at every image as a whole (section 3.1).

Reads the index and the teacher. Writes `data/global_clip.zarr`: embeddings, not probabilities, so
that class names, prompts, temperature and debiasing are free to try. Row i is row i of the index;
the row of an unusable image is NaN. Resumes by block.

    python -m stages.global_clip
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from stages.artifacts import GLOBAL_CLIP, TEACHER
from stages.images.crops import CropRule
from stages.models.device import block_size, device
from stages.models.embedding import embed_views, whole_image_views
from stages.models.teacher import Teacher
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.resume import in_blocks
from stages.runtime.types import Arrays
from stages.storage.arrays import Rows, with_gaps, write_store
from stages.storage.index import read_index, usable
from stages.storage.provenance import Provenance


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    rows = usable(index)
    how, where = params.global_clip, device()
    teacher = Teacher(TEACHER, where, how.precision)
    teacher.use(how.engine, "global_clip.engine")
    teacher.prepare(how.view_size, "global_clip.view_size", aspect_kept=how.aspect == "keep")
    rule = CropRule(how.view_size, "keep" if how.aspect == "keep" else "square")

    def embed(blocks: list[range]) -> Iterator[Arrays]:
        return embed_views(partial(whole_image_views, rows), blocks, teacher, rule)

    called = rows["image_id"].iloc.__getitem__
    computed = in_blocks(job, len(rows), block_size(where), "images", embed, called)
    provenance: Provenance = {
        "index": digest,
        "teacher": teacher.digest,
        "units": "unit vectors",
    }
    if how.engine != "torch":
        provenance["engine"] = how.engine
    ok = (index["status"] == "ok").to_numpy()
    embedding = Rows(len(index), with_gaps(computed.of("embedding"), ok))
    labels = {"image": index["image_id"]}
    write_store(GLOBAL_CLIP, {"embedding": embedding}, provenance, job.staging, labels)


if __name__ == "__main__":
    main("global_clip", run, on_ranks=True)
