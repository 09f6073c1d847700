"""Stage `bias`: CLIP's probabilities, its class-wise bias, and the initial labels (3.1, 3.3).

Reads the embeddings of images and classes. Writes `data/global_scores.parquet` (what CLIP says of
every usable image, raw), `data/bias.parquet` and `data/initial_labels.parquet` (the train split).

    python -m stages.bias
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

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
from stages.labelling import Labeller
from stages.method.debias import class_bias, entropy_limit_in_nats
from stages.method.types import Floats
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
    labeller = Labeller(params.labels, texts["embedding"], of_texts["temperature"])

    def seen(
        what: Callable[[Floats], Floats], split: str | None = None
    ) -> Iterator[tuple[pd.DataFrame, Floats]]:
        """The ids of usable images, of one split or of all, and `what` of their embeddings.

        A part at a time.
        """
        for part in parts_of(len(index)):
            rows = index.iloc[part]
            wanted = (rows["status"] == "ok") & ((rows["split"] == split) | (split is None))
            yield rows.loc[wanted, ["image_id"]], what(images["embedding"][part][wanted.to_numpy()])

    similarity = mean_of(values for _, values in seen(labeller.similarities, "train"))
    if params.labels.centre == "class_mean":
        labeller.centre = similarity
    limit = entropy_limit_in_nats(params.bias.entropy_limit, params.bias.entropy_unit, len(classes))
    parts = (p for _, p in seen(labeller.centred, "train"))
    measured = class_bias(parts, limit, params.bias.min_count)
    if params.bias.debias:
        labeller.bias = measured.bias
    labeller.settle(scores for _, scores in seen(labeller.scores, "train"))

    def initial(embeddings: Floats) -> Floats:
        labels = np.clip(labeller.labels(labeller.scores(embeddings)), 0, 1)
        return np.where(labeller.shown(embeddings)[:, None], labels, np.float32(0))

    temperature = labeller.temperature
    provenance = {"index": digest, "teacher": of_images["teacher"], "temperature": temperature}
    table = pd.DataFrame({"class": classes, "bias": measured.bias, "count": measured.images})
    table["measured"] = measured.images >= params.bias.min_count
    table["similarity"] = similarity
    write_table(BIAS, table, provenance, job.staging)
    for of, what, split in (
        (GLOBAL_SCORES, labeller.probabilities, None),
        (INITIAL_LABELS, initial, "train"),
    ):
        tables = (class_table(ids, values, classes) for ids, values in seen(what, split))
        write_table(of, tables, provenance, job.staging)


def mean_of(parts: Iterable[Floats]) -> Floats:
    """The mean row of rows that come in parts; zeros if there are none."""
    totals, counts = zip(*((part.sum(axis=0), len(part)) for part in parts), strict=True)
    mean: Floats = np.sum(totals, axis=0) / max(sum(counts), 1)
    return mean


if __name__ == "__main__":
    main("bias", run)
