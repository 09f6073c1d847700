"""A student's head fitted in closed form, on the features of its backbone as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stages.images.prefetch import load_global_views, split_batches
from stages.method.closed_form import Head, calibrate, calibrated, fit_by_likelihood
from stages.models.device import device
from stages.models.student import Student, StudentConfig, build_student, set_weights
from stages.models.weights import check_finite
from stages.runtime.progress import meter, say
from stages.runtime.types import Floats
from stages.training.state import Tensors

SAMPLE = 4096  # images, about, by which a boosted head is calibrated


def fit_head(
    stage: str,
    config: StudentConfig,
    weights: Tensors,
    rows: pd.DataFrame,
    labels: Floats,
    features: Iterator[Floats] | None = None,
) -> Tensors:
    """A student's weights with the head that follows from soft `labels` (images, classes).

    weights: the head's may be missing. rows: of the index, one an image. features: the images' own
    (n, 2, dim), of each and of its mirror image, in parts; if None, the student looks at every
    image. The head is linear; where the student boosts its maps, a scale and an offset a class make
    it say what it would say without.
    """
    check_finite(weights, f"{stage}: the student")
    student = None
    if features is None or config.boost != 1:
        student = build_student(config)
        set_weights(student, weights)
        student.to(device()).eval()
    if features is None:
        assert student is not None
        seen = looked_at(f"{stage} head", student, rows, student.pooled_features)
        features = (both.numpy() for both in seen)

    def parts() -> Iterator[tuple[Floats, Floats]]:
        first = 0
        for both in features:
            yield both.mean(axis=1), labels[first : first + len(both)]
            first += len(both)

    fitted = fit_by_likelihood(parts(), len(rows))
    weights = with_head(weights, fitted.head)
    if student is not None and config.boost != 1:
        set_weights(student, weights)
        some = rows.iloc[:: -(-len(rows) // SAMPLE)]
        boosted = torch.cat([*looked_at(f"{stage} boost", student, some, student.maps)])
        weights = with_head(weights, keep_boosted(fitted.head, boosted, config.boost))
    say(f"{stage}: head fitted in closed form, shrinkage {fitted.shrinkage:.3g}")
    if fitted.absent:
        named = ", ".join(config.classes[c] for c in fitted.absent)
        say(f"{stage}: warning: the labels tell no image from another for {named}")
    return weights


def keep_boosted(head: Head, maps: Tensor, boost: float) -> Head:
    """The head whose boosted maps, pooled, say what `head` says by its maps as they are.

    maps: its boosted ones, of some images (images, classes, h, w).
    """
    plain = torch.where(maps > 0, maps / boost, maps)
    said = plain.mean(dim=(2, 3)).sigmoid()
    return calibrated(head, calibrate(plain.numpy(), said.numpy(), boost))


def looked_at(
    title: str, student: Student, rows: pd.DataFrame, look: Callable[[Tensor], Tensor]
) -> Iterator[Tensor]:
    """What a student says of every row's image, in batches, on the processor."""
    size = student.config.size
    batches = split_batches(range(len(rows)), student.batch_size(size))
    views = load_global_views(rows, size, batches)
    with meter(title, "images", len(rows)) as progress:
        for batch, some in zip(batches, views, strict=True):
            yield look(some).cpu()
            progress.advance(len(batch))


def with_head(weights: Tensors, head: Head) -> Tensors:
    """A student's weights with another head."""
    weight, bias = (torch.from_numpy(np.asarray(values)).float() for values in head)
    return weights | {"head.weight": weight[:, :, None, None], "head.bias": bias}
