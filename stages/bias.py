"""Stage `bias`: CLIP's probabilities, its class-wise bias, and the initial labels (3.1, 3.3).

Reads the embeddings of images and classes. Writes `data/global_scores.parquet` (what CLIP says of
every usable image, raw), `data/bias.parquet` and `data/initial_labels.parquet` (the train split).
Embeddings are read a part at a time, as often as a formula needs them.

    python -m stages.bias
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd

from stages.artifacts import BIAS, CLASS_TEXT, GLOBAL_CLIP, GLOBAL_SCORES, INITIAL_LABELS
from stages.method.debias import class_bias, entropy_limit_in_nats
from stages.method.labelling import labels_of, zeroshot
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.types import Floats
from stages.storage.arrays import StoredArray, read_store
from stages.storage.index import ID_COLUMNS, read_index
from stages.storage.provenance import Provenance, parts_of
from stages.storage.tables import class_table, write_table


def run(params: Params, job: Job) -> None:
    index, digest = read_index(ID_COLUMNS)
    images, of_images = read_store(GLOBAL_CLIP, digest)
    texts, of_texts = read_store(CLASS_TEXT)
    if of_images["teacher"] != of_texts["teacher"]:
        raise UserError(
            "data/global_clip.zarr and data/class_text.zarr are of two teachers: run `dvc repro`"
        )
    classes, settings = of_texts["classes"], params.labels
    clip = zeroshot(settings, texts["embedding"][...], of_texts["temperature"])

    def train(formula: Callable[[Floats], Floats]) -> Iterator[Floats]:
        """`formula` of the embeddings of the training images."""
        return (formula(seen) for _, seen in embeddings(index, images["embedding"], "train"))

    similarity = mean_of(train(clip.similarities))
    centre = similarity if settings.centre == "class_mean" else 0.0
    limit = entropy_limit_in_nats(params.bias.entropy_limit, params.bias.entropy_unit, len(classes))
    probabilities = train(lambda seen: clip.probabilities(seen, centre))
    measured = class_bias(probabilities, limit, params.bias.min_count)
    divisor = measured.bias if params.bias.debias else None

    def initial_labels(seen: Floats) -> Floats:
        labels = labels_of(clip.probabilities(seen, centre), settings, divisor)
        return np.clip(labels, 0, 1)

    provenance: Provenance = {
        "index": digest,
        "teacher": of_images["teacher"],
        "temperature": clip.temperature,
    }
    bias = pd.DataFrame({"class": classes, "bias": measured.bias, "count": measured.images})
    bias["measured"] = measured.images >= params.bias.min_count
    bias["similarity"] = similarity
    write_table(BIAS, bias, provenance, job.staging)
    everything = embeddings(index, images["embedding"])
    scores = (class_table(ids, clip.probabilities(seen), classes) for ids, seen in everything)
    write_table(GLOBAL_SCORES, scores, provenance, job.staging)
    of_train = embeddings(index, images["embedding"], "train")
    labels = (class_table(ids, initial_labels(seen), classes) for ids, seen in of_train)
    write_table(INITIAL_LABELS, labels, provenance, job.staging)


def embeddings(
    index: pd.DataFrame, stored: StoredArray, split: str | None = None
) -> Iterator[tuple[pd.DataFrame, Floats]]:
    """Ids and embeddings of the usable images of a split, or of all, a part at a time."""
    for part in parts_of(len(index)):
        rows = index.iloc[part]
        wanted = (rows["status"] == "ok") & ((rows["split"] == split) | (split is None))
        yield rows.loc[wanted, ["image_id"]], stored[part][wanted.to_numpy()]


def mean_of(parts: Iterable[Floats]) -> Floats:
    """The mean row of rows that come in parts; zeros if there are none."""
    totals, counts = zip(*((part.sum(axis=0), len(part)) for part in parts), strict=True)
    mean: Floats = np.sum(totals, axis=0) / max(sum(counts), 1)
    return mean


if __name__ == "__main__":
    main("bias", run)
