"""Stage `bias`: CLIP's probabilities, its class-wise bias, and the initial labels (3.1, 3.3).

Reads the embeddings of images and classes. Writes `data/global_scores.parquet` (what CLIP says of
every usable image, raw), `data/bias.parquet` and `data/initial_labels.parquet` (the train split).

    python -m stages.bias
"""

from __future__ import annotations

from collections.abc import Iterator

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
    parts_of,
    read_store,
    read_table,
    write_table,
)
from stages.errors import UserError
from stages.job import Job, main
from stages.method.debias import class_bias, debias, entropy_limit_in_nats, label_floor
from stages.method.similarity import PROBABILITIES
from stages.method.types import Booleans, Floats
from stages.params import Params


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX, columns=["image_id", "split", "status", "sha256"])
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
    text = texts["embedding"][...]
    similarity = PROBABILITIES[params.labels.precision]

    def scores() -> Iterator[tuple[pd.DataFrame, Floats]]:
        """Rows of usable images and CLIP's probabilities for them, a part at a time."""
        for part in parts_of(len(index)):
            rows = index.iloc[part]
            ok = (rows["status"] == "ok").to_numpy()
            yield rows[ok], similarity(images["embedding"][part][ok], text, temperature)

    limit = entropy_limit_in_nats(params.bias.entropy_limit, params.bias.entropy_unit, len(classes))
    measured = class_bias((p[_train(rows)] for rows, p in scores()), limit, params.bias.min_count)
    floor = label_floor(params.labels.floor, len(classes))

    def initial(p: Floats) -> Floats:
        return np.clip(debias(p, measured.bias, floor), 0, 1) if params.bias.debias else p

    provenance = {"index": digest, "teacher": of_images["teacher"], "temperature": temperature}
    table = pd.DataFrame({"class": classes, "bias": measured.bias, "count": measured.images})
    table["measured"] = measured.images >= params.bias.min_count
    write_table(BIAS, table, provenance, job.staging)
    raw = (class_table(rows[["image_id"]], p, classes) for rows, p in scores())
    write_table(GLOBAL_SCORES, raw, provenance, job.staging)
    labels = (
        class_table(rows.loc[_train(rows), ["image_id"]], initial(p[_train(rows)]), classes)
        for rows, p in scores()
    )
    write_table(INITIAL_LABELS, labels, provenance, job.staging)


def _train(rows: pd.DataFrame) -> Booleans:
    return (rows["split"] == "train").to_numpy()


if __name__ == "__main__":
    main("bias", run)
