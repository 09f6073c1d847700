"""Stage `global_clip`: the teacher looks at every image as a whole (section 3.1).

Reads the index and the teacher. Writes `data/global_clip.zarr`: embeddings, not probabilities, so
that class names, prompts, temperature and debiasing are free to try. Row i is row i of the index;
the row of an unusable image is NaN. Resumes by block.

    python -m stages.global_clip
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np

from stages import machine
from stages.artifacts import (
    GLOBAL_CLIP,
    INDEX,
    TEACHER,
    Rows,
    index_digest,
    read_table,
    usable,
    write_store,
)
from stages.embedding import embed_looks, whole_images
from stages.images.views import Cutting
from stages.job import Job, main
from stages.method.types import Booleans, Floats
from stages.models.teacher import Teacher
from stages.params import Params
from stages.resume import Arrays, in_blocks


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    rows = usable(index)
    how, device = params.global_clip, machine.device()
    teacher = Teacher(TEACHER, device, how.precision)
    teacher.take(how.view_size, "global_clip.view_size", aspect_kept=how.aspect == "keep")
    cutting = Cutting(how.view_size, "keep" if how.aspect == "keep" else "square")

    def embed(blocks: list[range]) -> Iterator[Arrays]:
        return embed_looks(partial(whole_images, rows), blocks, teacher, cutting)

    computed = in_blocks(job, len(rows), machine.block(device), "images", embed)
    provenance = {"index": index_digest(index), "teacher": teacher.digest, "units": "unit vectors"}
    ok = (index["status"] == "ok").to_numpy()
    write_store(
        GLOBAL_CLIP,
        {"embedding": Rows(len(index), with_gaps(computed.of("embedding"), ok))},
        provenance,
        job.staging,
        labels={"image": index["image_id"]},
    )


def with_gaps(parts: Iterable[Floats], there: Booleans) -> Iterator[Floats]:
    """The rows of `parts` where `there` is True, rows of NaN between, before and behind them."""
    places = np.flatnonzero(there)
    begin, used = 0, 0
    for part in parts:
        used += len(part)
        end = int(places[used]) if used < len(places) else len(there)
        rows = np.full((end - begin, part.shape[1]), np.nan, np.float32)
        rows[there[begin:end]] = part
        yield rows
        begin = end


if __name__ == "__main__":
    main("global_clip", run, on_ranks=True)
