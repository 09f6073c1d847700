"""CDUL (Abdelfattah et al. 2023) on the pipeline's photographs: Table 1's nearest competitor.

    python -m experiments.table1 --only cdul

CLIP's probabilities of the whole image and of its nine tiles become initial labels; the student
learns them, and after each epoch they take a step towards its predictions. The tiles are the
pipeline's own local views, so it must have run with `cam_boxes: {views: grid, mean_views: 9}`, or
`windows` for such that overlap.

Reads the index, CLIP's scores of images and tiles, the student's first weights and, to judge, the
ground truth. Writes `results/table1/cdul.json`, with how good the labels were before and after each
update. Resumes by epoch.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.baseline import first_of, train_and_judge
from experiments.objectives import aggregated, aligned_labels, bernoulli_divergence
from experiments.results import aligned, read_data, write_result
from experiments.settings import Cdul, read_settings
from stages.artifacts import CAM_BOXES, GLOBAL_SCORES, LOCAL_SCORES
from stages.method.average_precision import mean_average_precision
from stages.method.objective import Objective
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.types import Floats
from stages.storage.tables import class_columns, class_values, read_table

TILES = 9


def run(params: Params, job: Job) -> None:
    settings, data = read_settings().cdul, read_data()
    rows = data.rows
    boxes, of_boxes = read_table(CAM_BOXES, data.digest, columns=["image_id"])
    if of_boxes["views"] not in ("grid", "windows") or len(boxes) != TILES * len(rows):
        raise UserError(
            "the local views are neither 3 x 3 tiles nor windows: set cam_boxes.views to grid and "
            "cam_boxes.mean_views to 9 in params.yaml and run `dvc repro fuse_labels`, or use "
            "`python -m experiments.table1`, which does so beside"
        )
    images, _ = read_table(GLOBAL_SCORES, data.digest)
    tiles, _ = read_table(LOCAL_SCORES, data.digest)
    if class_columns(LOCAL_SCORES, tiles) != data.classes:
        raise UserError(f"{LOCAL_SCORES.path} has other classes than the labels: run `dvc repro`")
    of_tiles = class_values(LOCAL_SCORES, tiles).reshape(len(rows), TILES, -1)
    labels = initial_labels(aligned(images, rows), of_tiles, settings)
    epochs = params.warmup.epochs + params.train.epochs
    truth = aligned(data.truth, rows)
    objective = Aligned(torch.from_numpy(labels), truth, settings, epochs)
    student = first_of(params, data, settings.boost)
    result, state = train_and_judge(job, params, data, student, objective)
    shares = state.objective["quality"].tolist()
    quality = [None if math.isnan(share) else round(100 * share, 2) for share in shares]
    told = {"knows": "clip", "label_mAP": quality}
    write_result(job, "cdul", {"method": "cdul", **result, **told})


def initial_labels(whole: Floats, tiles: Floats, settings: Cdul) -> Floats:
    """The mean of what CLIP says of the whole image and of its tiles, (images, classes).

    whole (images, classes), tiles (images, tiles, classes): probabilities.
    """
    of_tiles = aggregated(torch.from_numpy(tiles), settings.threshold).numpy()
    mean = (whole + of_tiles + settings.difference * np.abs(whole - of_tiles)) / 2
    labels: Floats = np.clip(mean, 0, 1).astype(np.float32)
    return labels


class Aligned(Objective):
    """Soft labels that step towards the predictions after each epoch, from the `wait`-th on.

    Keeps their mean average precision, at first and after each epoch, NaN without a truth to judge
    them by; nothing is chosen by it.
    """

    moved: Tensor
    quality: Tensor

    def __init__(self, labels: Tensor, truth: Floats, settings: Cdul, epochs: int) -> None:
        super().__init__(labels)
        self.settings, self.truth = settings, truth
        quality = torch.full((epochs + 1,), torch.nan)
        quality[0] = mean_average_precision(truth, labels.numpy())
        self.register_buffer("moved", labels.clone())
        self.register_buffer("quality", quality)

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """The divergence of the predictions from the labels as they are now."""
        return bernoulli_divergence(self.moved[rows], logits)

    def end_epoch(self, predicted: Tensor, epoch: int) -> None:
        """Take the step, with the epoch's predictions."""
        if epoch >= self.settings.wait:
            self.moved = aligned_labels(self.moved, predicted.sigmoid(), self.settings.width)
        self.quality[epoch] = mean_average_precision(self.truth, self.moved.cpu().numpy())


if __name__ == "__main__":
    declared_by = partial(declaration, "cdul", file=Path("experiments/dvc.yaml"))
    main("cdul", run, declared_by=declared_by)
