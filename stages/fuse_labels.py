"""Stage `fuse_labels`: what the local views say is fused with the initial labels (Eq. 5-7).

Reads the embeddings of local views and classes, the boxes, the bias and the initial labels; and
people's answers, which the pseudo-labels take for certain. Writes `data/local_scores.parquet` (what
CLIP says of each view, raw), `data/local_labels.parquet` and `data/pseudo_labels.parquet`.
Embeddings are read a part at a time, as often as they are needed.

    python -m stages.fuse_labels
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from stages.artifacts import (
    ANSWERS,
    BIAS,
    CAM_BOXES,
    CLASS_TEXT,
    INITIAL_LABELS,
    LOCAL_CLIP,
    LOCAL_LABELS,
    LOCAL_SCORES,
    PSEUDO_LABELS,
)
from stages.method.fusion import answered, fuse, pool_views
from stages.method.labelling import Zeroshot, labels_of, zeroshot
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.types import Booleans, Floats, Integers
from stages.storage.arrays import StoredArray, read_store
from stages.storage.index import ID_COLUMNS, read_index
from stages.storage.provenance import Provenance, file_digest, parts_of
from stages.storage.tables import class_table, class_values, read_parts, read_table, write_table


def run(params: Params, job: Job) -> None:
    _, digest = read_index(ID_COLUMNS)
    ids, of_initial = read_table(INITIAL_LABELS, digest, columns=["image_id"])
    boxes, of_boxes = read_table(CAM_BOXES, digest, columns=["image_id", "class", "rank"])
    bias, _ = read_table(BIAS, digest)
    views, of_views = read_store(LOCAL_CLIP, digest)
    texts, of_texts = read_store(CLASS_TEXT)
    told, of_answers = read_table(ANSWERS, digest)
    told = told.set_index("image_id")
    classes, settings = of_initial["classes"], params.labels
    check(of_initial, of_boxes, of_views, of_texts, of_answers)
    clip = zeroshot(settings, texts["embedding"][...], of_texts["temperature"])
    similarity = bias["similarity"].to_numpy(np.float64)
    centre = similarity if settings.centre == "class_mean" else 0.0
    divisor = bias["bias"].to_numpy() if params.fuse_labels.debias else None
    image = pd.Index(ids["image_id"]).get_indexer(pd.Index(boxes["image_id"]))  # of every view

    def pooled() -> Iterator[tuple[pd.DataFrame, Floats, Booleans]]:
        """Initial labels; the best that an image's views say; whether it has any (Eq. 5, 6)."""
        first = 0
        for initial in read_parts(INITIAL_LABELS, digest):
            rows = range(first, first + len(initial))
            scores, place = scores_of_views(clip, centre, views["embedding"], image, rows)
            yield initial, *pool_views(scores, place, len(initial))
            first = rows.stop

    def fused() -> Iterator[tuple[pd.DataFrame, Floats, Floats]]:
        """Image ids, local labels and pseudo-labels (Eq. 7)."""
        for initial, best, viewed in pooled():
            local = labels_of(best, settings, divisor)
            # as published, an image without a view has a row of zeros for its local label
            counted = viewed | (params.fuse_labels.no_view == "zeros")
            values = class_values(INITIAL_LABELS, initial)
            pseudo = fuse(values, local, counted, params.fuse_labels.alpha)
            pseudo = answered(pseudo, told.reindex(initial["image_id"]).to_numpy())
            yield initial[["image_id"]], np.where(counted[:, None], np.clip(local, 0, 1), 0), pseudo

    provenance: Provenance = {
        "index": digest,
        "teacher": of_views["teacher"],
        "temperature": clip.temperature,
    }
    raw = (
        class_table(boxes.iloc[some], clip.probabilities(views["embedding"][some]), classes)
        for some in parts_of(len(boxes))
    )
    write_table(LOCAL_SCORES, raw, provenance, job.staging)
    local_labels = (class_table(who, local, classes) for who, local, _ in fused())
    write_table(LOCAL_LABELS, local_labels, provenance, job.staging)
    pseudo_labels = (class_table(who, pseudo, classes) for who, _, pseudo in fused())
    write_table(PSEUDO_LABELS, pseudo_labels, provenance, job.staging)


def check(
    of_initial: Provenance,
    of_boxes: Provenance,
    of_views: Provenance,
    of_texts: Provenance,
    of_answers: Provenance,
) -> None:
    """Raise `UserError` unless labels, boxes, views, class names and answers belong together."""
    if of_views["boxes"] != file_digest(CAM_BOXES.path):
        raise UserError(f"{LOCAL_CLIP.path} was made from other boxes: run `dvc repro`")
    classes = of_initial["classes"]
    if of_answers["classes"] != classes:
        raise UserError(f"{ANSWERS.path} has other classes than the labels: run `dvc repro`")
    if (
        not of_texts["classes"] == of_boxes.get("asked", classes) == classes
        or not of_texts["teacher"] == of_initial["teacher"] == of_views["teacher"]
    ):
        raise UserError("the labels, views and class names do not belong together: run `dvc repro`")


def scores_of_views(
    clip: Zeroshot, centre: Floats | float, stored: StoredArray, image: Integers, rows: range
) -> tuple[Floats, Integers]:
    """Scores (views, classes) of the views of some images, and the place of each one's in `rows`.

    stored: the embeddings of all views, and image: the row of each one's image, in order.
    """
    start, stop = (int(n) for n in np.searchsorted(image, [rows.start, rows.stop]))
    scores, places = [], []
    for some in parts_of(stop, start=start):
        scores.append(clip.probabilities(stored[some], centre))
        places.append(image[some] - rows.start)
    return np.concatenate(scores), np.concatenate(places)


if __name__ == "__main__":
    main("fuse_labels", run)
