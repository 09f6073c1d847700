"""Which soft labels make the best student: of the same views, a head fitted to each kind.

    python -m experiments.label_kinds --seeds 0,1,2
    python -m experiments.label_kinds --seeds 0 --preset photographs

Nothing is trained: thirteen windows an image (or `--windows 29`, sixteen of them a sixth of its
area), and heads in closed form on the student's first weights, so that a kind takes seconds. Writes
`results/label_kinds.csv` (or below `results/photographs`), a line a kind and seed. That labels are
good by their average precision does not mean that a good student follows from them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from scipy.special import expit
from scipy.special import softmax as softmax_of

from experiments.ablations import UNTRAINED
from experiments.clone import must_be_judged, prepare, reproduce, seed_list
from experiments.discriminant import out_of_fold
from experiments.results import judged as of_scores
from stages.artifacts import (
    BIAS,
    CLASS_TEXT,
    GLOBAL_CLIP,
    GROUND_TRUTH,
    INDEX,
    LOCAL_CLIP,
    STUDENT_FEATURES,
)
from stages.method.average_precision import (
    average_precision,
    mean_average_precision,
)
from stages.method.closed_form import calibrate, fit_by_likelihood, logits_of
from stages.method.similarity import similarities
from stages.runtime.types import Floats
from stages.storage.arrays import Store, read_store
from stages.storage.index import index_digest
from stages.storage.tables import read_table

NAME, RESULTS = "label_kinds", Path("results")
WANTED = ("ground_truth", "bias", "student_features", "local_clip")
LINE = ["row", "labels_per_image", "label_mAP", "label_micro_AP", "mAP", "common", "micro_AP"]


class Seen(NamedTuple):
    """What a run left, of the training images, and of the test images what judges a head.

    views: cosines (images, 1 + windows, classes), the whole image first; embeddings: of the same,
    (images, 1 + windows, dim). features, truth: by split.
    """

    views: Floats
    embeddings: Floats
    temperature: float
    bias: Floats
    features: dict[str, Floats]
    truth: dict[str, Floats]


def main(
    seeds: Annotated[str, typer.Option(help="By comma.")] = "0,1,2",
    preset: Annotated[
        str, typer.Option(help="Of `ccd preset`, instead of the parameters that are committed.")
    ] = "",
    windows: Annotated[
        int, typer.Option(help="An image: 4, 9, 13 or 29, the last ones tiny.")
    ] = 13,
) -> None:
    """Measure every kind with every seed."""
    params, numbers, results = prepare(preset), seed_list(seeds), RESULTS / preset
    changes = UNTRAINED | {"cam_boxes.mean_views": float(windows)}
    name = NAME if windows == 13 else f"{NAME}_{windows}"
    must_be_judged(numbers[0])
    lines = []
    for seed in numbers:
        seen = read(reproduce(seed, changes, *WANTED))
        for kind, labels in kinds(seen, params.fuse_labels.alpha):
            lines.append({"row": kind, "seed": seed} | judged(seen, labels))
            print(lines[-1], flush=True)
            results.mkdir(exist_ok=True)
            table = pd.DataFrame(lines).round(2)
            table.to_csv(results / f"{name}.csv", index=False, lineterminator="\n")
    print(table.reindex(columns=LINE).groupby("row", sort=False).mean().round(1).to_string())


def read(done: Path) -> Seen:
    """What the run in that folder saw."""

    def array(store: Store, name: str) -> Floats:
        stored, _ = read_store(replace(store, path=done / store.path))
        values: Floats = stored[name][...]
        return values

    index, _ = read_table(replace(INDEX, path=done / INDEX.path))
    of_truth = replace(GROUND_TRUTH, path=done / GROUND_TRUTH.path)
    truth = read_table(of_truth, index_digest(index))[0].set_index("image_id")
    ok = index["status"] == "ok"
    rows = {split: (ok & (index["split"] == split)).to_numpy() for split in ("train", "test")}
    text, note = read_store(replace(CLASS_TEXT, path=done / CLASS_TEXT.path))
    whole = array(GLOBAL_CLIP, "embedding")[rows["train"]]
    windows = array(LOCAL_CLIP, "embedding").reshape(len(whole), -1, whole.shape[1])
    embeddings = np.concatenate([whole[:, None], windows], axis=1)
    pooled = array(STUDENT_FEATURES, "pooled")
    flat = embeddings.reshape(-1, whole.shape[1])
    return Seen(
        similarities(flat, text["embedding"][...]).reshape(*embeddings.shape[:2], -1),
        embeddings,
        note["temperature"],
        pd.read_parquet(done / BIAS.path)["bias"].to_numpy(),
        {
            "train": pooled[rows["train"]].mean(axis=1),
            "test": pooled[rows["test"]][:, 0],
        },
        {
            split: truth.reindex(index["image_id"][these]).to_numpy()
            for split, these in rows.items()
        },
    )


def kinds(seen: Seen, alpha: float) -> Iterator[tuple[str, Floats]]:
    """Labels (images, classes) in [0, 1] of the training images, with what they are called."""
    images, views, classes = seen.views.shape
    floor = 1 / classes

    def mixed(scores: Floats) -> Floats:
        """alpha of the whole image, the rest of the best window (Eq. 5-7)."""
        both: Floats = alpha * scores[:, 0] + (1 - alpha) * scores[:, 1:].max(axis=1)
        return both

    def fused(p: Floats) -> Floats:
        return np.clip(mixed(p), 0, 1)

    def softmax(cosines: Floats) -> Floats:
        probabilities: Floats = softmax_of(cosines / seen.temperature, axis=-1)
        return probabilities

    def divided(p: Floats) -> Floats:
        """By the bias, the whole image's clipped at once, as the pipeline does."""
        by_bias = p / seen.bias
        by_bias[:, 0] = np.clip(by_bias[:, 0], 0, 1)
        return by_bias

    p = softmax(seen.views)
    plain, raised = fused(p), fused(np.maximum(p, floor))
    yield "softmax", plain
    yield "raised to the floor", raised
    yield "mixed with the floor: the order kept", floor + (1 - floor) * plain
    yield "divided by the bias", fused(divided(p))
    both = fused(divided(np.maximum(p, floor)))
    yield "raised and divided: as published", both
    yield "softmax, squared", plain**2
    yield "raised to the floor, squared", raised**2
    yield "raised and divided, squared", both**2
    centred = fused(softmax(seen.views - seen.views[:, 1:].mean(axis=(0, 1))))
    yield "less each class's mean, squared", centred**2

    def scaled(scores: Floats) -> Floats:
        """Scores (images, classes) as labels: what makes the squared softmax likeliest of them."""
        by = calibrate(scores, plain**2)
        labels: Floats = expit(scores * by.weight[:, 0] + by.bias)
        return labels

    of_image = seen.views - seen.views.mean(axis=-1, keepdims=True)
    yield "cosines centred over the classes", scaled(mixed(of_image))
    of_image /= seen.views.std(axis=-1, keepdims=True)
    of_class = (of_image - of_image.mean(axis=0)) / of_image.std(axis=0)
    yield "cosines standardised by view and by class", scaled(mixed(of_class))
    of_view = np.repeat(np.arange(images), views)
    flat = seen.embeddings.reshape(images * views, -1)
    said = out_of_fold(flat, (p**2).reshape(-1, classes), of_view)
    discriminant = fused(expit(said).reshape(p.shape))
    yield "a discriminant on the views", discriminant
    yield "half softmax, squared, half discriminant", (plain**2 + discriminant) / 2
    own = expit(out_of_fold(seen.features["train"], plain**2, np.arange(images)))
    yield "half softmax, squared, half the head's own", (plain**2 + own) / 2
    yield "the truth", np.nan_to_num(seen.truth["train"])


def judged(seen: Seen, labels: Floats) -> dict[str, float]:
    """How good labels are, and on test images the head that is fitted to them; in percent."""
    truth, parts = seen.truth["train"], [(seen.features["train"], labels.astype(np.float32))]
    head = fit_by_likelihood(parts, len(labels)).head
    of_labels = {
        "labels_per_image": float(labels.sum(axis=1).mean()),
        "label_mAP": 100 * mean_average_precision(truth, labels),
        "label_micro_AP": 100 * average_precision(truth.ravel(), labels.ravel()),
    }
    return of_labels | of_scores(seen.truth["test"], logits_of(head, seen.features["test"]))


if __name__ == "__main__":
    typer.run(main)
