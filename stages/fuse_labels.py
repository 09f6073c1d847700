"""Stage `fuse_labels`: what the local views say is fused with the initial labels (Eq. 5-7).

Reads the embeddings of local views and classes, the boxes, the bias and the initial labels. Writes
`data/local_scores.parquet` (what CLIP says of each view, raw), `data/local_labels.parquet` and
`data/pseudo_labels.parquet`.

    python -m stages.fuse_labels
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from stages.artifacts import (
    BIAS,
    CAM_BOXES,
    CLASS_TEXT,
    INDEX,
    INITIAL_LABELS,
    LOCAL_CLIP,
    LOCAL_LABELS,
    LOCAL_SCORES,
    PSEUDO_LABELS,
    class_columns,
    class_table,
    class_values,
    file_digest,
    index_digest,
    read_store,
    read_table,
    write_table,
)
from stages.errors import UserError
from stages.job import Job, main
from stages.method.debias import debias, label_floor
from stages.method.fusion import fuse, pool_views
from stages.method.similarity import PROBABILITIES
from stages.params import Params


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    initial, _ = read_table(INITIAL_LABELS, digest)
    boxes, of_boxes = read_table(CAM_BOXES, digest)
    bias, _ = read_table(BIAS, digest)
    views, of_views = read_store(LOCAL_CLIP, digest)
    texts, of_texts = read_store(CLASS_TEXT)
    if of_views["boxes"] != file_digest(CAM_BOXES):
        raise UserError(f"{LOCAL_CLIP.path} was made from other boxes: run `dvc repro`")
    classes = class_columns(INITIAL_LABELS, initial)
    if (
        not of_texts["classes"] == of_boxes.get("asked", classes) == classes
        or of_texts["teacher"] != of_views["teacher"]
    ):
        raise UserError("the labels, views and class names do not belong together: run `dvc repro`")
    learned = params.labels.temperature == "learned"
    temperature = of_texts["temperature"] if learned else float(params.labels.temperature)

    p = PROBABILITIES[params.labels.precision](views["embedding"], texts["embedding"], temperature)
    rows = pd.Index(initial["image_id"]).get_indexer(pd.Index(boxes["image_id"]))
    local, viewed = pool_views(p, rows, len(initial))
    if params.fuse_labels.no_view == "zeros":
        viewed[:] = True  # a row of zeros counts as what was seen
    if params.fuse_labels.debias:
        local = debias(
            local, bias["bias"].to_numpy(), label_floor(params.labels.floor, len(classes))
        )
    pseudo = fuse(class_values(INITIAL_LABELS, initial), local, viewed, params.fuse_labels.alpha)

    provenance = {"index": digest, "teacher": of_views["teacher"], "temperature": temperature}
    ids = initial[["image_id"]]
    local = np.where(viewed[:, None], np.clip(local, 0, 1), 0)
    view_ids = boxes[["image_id", "class", "rank"]]
    write_table(LOCAL_SCORES, class_table(view_ids, p, classes), provenance, job.staging)
    write_table(LOCAL_LABELS, class_table(ids, local, classes), provenance, job.staging)
    write_table(PSEUDO_LABELS, class_table(ids, pseudo, classes), provenance, job.staging)


if __name__ == "__main__":
    main("fuse_labels", run)
