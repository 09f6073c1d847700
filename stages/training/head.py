"""A student's head fitted in closed form, on the features of its backbone as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
import torch

from stages.images.prefetch import load_global_views, split_batches
from stages.method.closed_form import Part, fit_by_likelihood
from stages.models.student import Student
from stages.models.weights import check_finite
from stages.runtime.progress import meter, say
from stages.runtime.types import Floats


def fit_head(stage: str, student: Student, rows: pd.DataFrame, labels: Floats) -> None:
    """Give a student the head that follows from soft `labels` (images, classes), in place.

    rows: of the index, one an image. Each is seen once, and mirrored. The head is linear, so its
    maps are no longer boosted.
    """
    size = student.config.size
    student.eval().zero_grad(set_to_none=True)
    check_finite(student.state_dict(), f"{stage}: the student")
    batches = split_batches(range(len(rows)), student.batch_size(size))

    def parts() -> Iterator[Part]:
        views = load_global_views(rows, size, batches)
        with meter(f"{stage} head", "images", len(rows)) as progress:
            for batch, some in zip(batches, views, strict=True):
                yield student.pooled_features(some).cpu().numpy(), labels[list(batch)]
                progress.advance(len(batch))

    fitted = fit_by_likelihood(parts(), len(rows))
    weight, bias = (torch.from_numpy(values).float() for values in fitted.head)
    student.head.load_state_dict({"weight": weight[:, :, None, None], "bias": bias})
    student.config = student.config.model_copy(update={"boost": 1.0})
    say(f"{stage}: head fitted in closed form, shrinkage {fitted.shrinkage:.3g}")
    if fitted.absent:
        named = ", ".join(student.config.classes[c] for c in fitted.absent)
        say(f"{stage}: warning: the labels tell no image from another for {named}")
