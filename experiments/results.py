"""What the experiments that are stages have in common: labels beside photographs, and a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.errors import UserError
from stages.job import Job
from stages.method.types import Floats

RESULTS = Path("results/table1")


def aligned(table: pd.DataFrame, rows: pd.DataFrame) -> Floats:
    """What a label table has for the index's `rows`: (images, classes); NaN for what it has not."""
    return table.set_index("image_id").reindex(rows["image_id"]).to_numpy(np.float32)


def judge(truth: pd.DataFrame, held_out: pd.DataFrame) -> Floats:
    """The labels (images, classes) of the index's held-out rows; refused if there are none."""
    judged = aligned(truth, held_out)
    if np.isnan(judged).all():
        raise UserError("no test image has a label: see source.labels in params.yaml")
    return judged


def write_result(job: Job, name: str, result: dict[str, Any]) -> None:
    """Write `results/table1/NAME.json`."""
    path = job.staging / RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
