"""Stage `bias`: CLIP's probabilities, its class-wise bias, and the initial labels (3.1, 3.3).

Reads the embeddings of images and classes. Writes `data/global_scores.parquet` (what CLIP says of
every usable image, raw), `data/bias.parquet` and `data/initial_labels.parquet` (the train split).

    python -m stages.bias
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from stages.artifacts import (
    BIAS,
    CLASS_TEXT,
    GLOBAL_CLIP,
    GLOBAL_SCORES,
    INDEX,
    INITIAL_LABELS,
    class_table,
    index_digest,
    read_store,
    read_table,
    usable,
    write_table,
)
from stages.errors import UserError
from stages.job import Job, main
from stages.method.debias import class_bias, debias, entropy_limit_in_nats, label_floor
from stages.method.similarity import PROBABILITIES
from stages.params import Params


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    images, of_images = read_store(GLOBAL_CLIP, digest)
    texts, of_texts = read_store(CLASS_TEXT)
    if of_images["teacher"] != of_texts["teacher"]:
        raise UserError(
            "data/global_clip.zarr and data/class_text.zarr are of two teachers: run `dvc repro`"
        )
    classes = of_texts["classes"]
    learned = params.labels.temperature == "learned"
    temperature = of_texts["temperature"] if learned else float(params.labels.temperature)

    readable = usable(index)
    ok = (index["status"] == "ok").to_numpy()
    similarity = PROBABILITIES[params.labels.precision]
    p = similarity(images["embedding"][ok], texts["embedding"], temperature)
    train = (readable["split"] == "train").to_numpy()
    limit = entropy_limit_in_nats(params.bias.entropy_limit, params.bias.entropy_unit, len(classes))
    measured = class_bias(p[train], limit, params.bias.min_count)
    initial = p[train]
    if params.bias.debias:
        floor = label_floor(params.labels.floor, len(classes))
        initial = np.clip(debias(initial, measured.bias, floor), 0, 1)

    provenance = {"index": digest, "teacher": of_images["teacher"], "temperature": temperature}
    table = pd.DataFrame({"class": classes, "bias": measured.bias, "count": measured.images})
    table["measured"] = measured.images >= params.bias.min_count
    write_table(BIAS, table, provenance, job.staging)
    write_table(
        GLOBAL_SCORES, class_table(readable[["image_id"]], p, classes), provenance, job.staging
    )
    ids = readable.loc[train, ["image_id"]]
    write_table(INITIAL_LABELS, class_table(ids, initial, classes), provenance, job.staging)


if __name__ == "__main__":
    main("bias", run)
