"""Stage `fuse_labels`: what the local views say is fused with the initial labels (Eq. 5-7).

Reads the embeddings of local views and classes, the boxes, the bias and the initial labels. Writes
`data/local_scores.parquet` (what CLIP says of each view, raw), `data/local_labels.parquet` and
`data/pseudo_labels.parquet`.

    python -m stages.fuse_labels
"""

from __future__ import annotations

from collections.abc import Iterator

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
    class_table,
    class_values,
    file_digest,
    index_digest,
    parts_of,
    read_parts,
    read_store,
    read_table,
    write_table,
)
from stages.errors import UserError
from stages.job import Job, main
from stages.labelling import Labeller
from stages.method.fusion import fuse, pool_views
from stages.method.types import Booleans, Floats
from stages.params import Params


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    ids, of_initial = read_table(INITIAL_LABELS, digest, columns=["image_id"])
    seen, of_boxes = read_table(CAM_BOXES, digest, columns=["image_id", "class", "rank"])
    bias, _ = read_table(BIAS, digest)
    views, of_views = read_store(LOCAL_CLIP, digest)
    texts, of_texts = read_store(CLASS_TEXT)
    if of_views["boxes"] != file_digest(CAM_BOXES):
        raise UserError(f"{LOCAL_CLIP.path} was made from other boxes: run `dvc repro`")
    classes = of_initial["classes"]
    if (
        not of_texts["classes"] == of_boxes.get("asked", classes) == classes
        or of_texts["teacher"] != of_views["teacher"]
    ):
        raise UserError("the labels, views and class names do not belong together: run `dvc repro`")
    labeller = Labeller(params.labels, texts["embedding"], of_texts["temperature"])
    if params.labels.centre == "class_mean":
        labeller.centre = bias["similarity"].to_numpy(np.float64)
    if params.fuse_labels.debias:
        labeller.bias = bias["bias"].to_numpy()
    image = pd.Index(ids["image_id"]).get_indexer(pd.Index(seen["image_id"]))  # of every view

    def pooled() -> Iterator[tuple[pd.DataFrame, Floats, Booleans]]:
        """Initial labels, the best that the views of each image say, and whether it has any.

        A part at a time; views are in that order.
        """
        first = 0
        for part in read_parts(INITIAL_LABELS, digest):
            start, stop = (int(n) for n in np.searchsorted(image, [first, first + len(part)]))
            scores, places = [], []
            for some in parts_of(stop, start=start):
                embeddings = views["embedding"][some]
                shown = labeller.shown(embeddings)
                scores.append(labeller.scores(embeddings[shown]))
                places.append(image[some][shown] - first)
            yield part, *pool_views(np.concatenate(scores), np.concatenate(places), len(part))
            first += len(part)

    labeller.settle(best[viewed] for _, best, viewed in pooled())

    def labels() -> Iterator[tuple[pd.DataFrame, Floats, Floats]]:
        """Image ids, local labels and pseudo-labels, a part at a time."""
        for part, best, viewed in pooled():
            counted = viewed
            if params.fuse_labels.no_view == "zeros":
                counted = np.ones_like(viewed)  # a row of zeros counts as what was seen
            local = labeller.labels(best)
            initial = class_values(INITIAL_LABELS, part)
            pseudo = fuse(initial, local, counted, params.fuse_labels.alpha)
            yield part[["image_id"]], np.where(counted[:, None], np.clip(local, 0, 1), 0), pseudo

    temperature = labeller.temperature
    provenance = {"index": digest, "teacher": of_views["teacher"], "temperature": temperature}
    raw = (
        class_table(seen.iloc[of], labeller.probabilities(views["embedding"][of]), classes)
        for of in parts_of(len(seen))
    )
    write_table(LOCAL_SCORES, raw, provenance, job.staging)
    local = (class_table(who, local, classes) for who, local, _ in labels())
    write_table(LOCAL_LABELS, local, provenance, job.staging)
    pseudo = (class_table(who, pseudo, classes) for who, _, pseudo in labels())
    write_table(PSEUDO_LABELS, pseudo, provenance, job.staging)


if __name__ == "__main__":
    main("fuse_labels", run)
