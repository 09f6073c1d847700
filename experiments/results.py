"""What the experiments that are stages have in common: labels beside photographs, and a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stages.artifacts import GROUND_TRUTH
from stages.method.average_precision import average_precision, per_class_average_precision
from stages.method.closed_form import Doubles
from stages.runtime.errors import UserError
from stages.runtime.job import Job
from stages.runtime.types import Floats
from stages.storage.index import read_index, usable
from stages.storage.tables import class_columns, read_table

RESULTS = Path("results/table1")
ENOUGH = 9  # positives in the test split: the average precision of fewer says little


class Data(NamedTuple):
    """The index's usable rows of both splits, the ground truth, and the index's digest."""

    rows: pd.DataFrame
    held_out: pd.DataFrame
    truth: pd.DataFrame
    digest: str

    @property
    def classes(self) -> list[str]:
        """Their names, in their order."""
        return class_columns(GROUND_TRUTH, self.truth)

    def must_be_of(self, classes: list[str]) -> None:
        """Raise `UserError` unless these, of labels or texts, are the classes of the truth."""
        if self.classes != classes:
            raise UserError("the ground truth has other classes than the labels: run `dvc repro`")

    @property
    def judged(self) -> Floats:
        """The labels (images, classes) of the held-out images; refused if there are none."""
        labels = aligned(self.truth, self.held_out)
        if np.isnan(labels).all():
            raise UserError("no test image has a label: see source.labels in params.yaml")
        return labels


def read_data() -> Data:
    """What every method is trained on and judged by."""
    index, digest = read_index()
    truth, _ = read_table(GROUND_TRUTH, digest)
    return Data(usable(index, "train"), usable(index, "test"), truth, digest)


def aligned(table: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    """What a label table has for the index's `rows`: (images, classes); NaN for what it has not."""
    return table.set_index("image_id").reindex(rows["image_id"]).to_numpy(np.float32)


def judged(truth: Floats, scores: Floats | Doubles) -> dict[str, float]:
    """How good scores (images, classes) are, in percent.

    common: the mean over the classes with ENOUGH test positives, left out if none has.
    """
    of_class = per_class_average_precision(truth, scores)
    common = of_class[np.nansum(truth, axis=0) >= ENOUGH]
    found = {"mAP": float(np.nanmean(of_class))}
    found |= {"common": float(common.mean())} if len(common) else {}
    found["micro_AP"] = average_precision(truth.ravel(), scores.ravel())
    return {name: round(100 * value, 2) for name, value in found.items()}


def write_result(job: Job, name: str, result: Mapping[str, object]) -> None:
    """Write `results/table1/NAME.json`."""
    path = job.staging / RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
