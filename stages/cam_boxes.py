"""Stage `cam_boxes`: the student says where to look (section 3.2, Eq. 4).

Reads the index and the warmed-up student. Writes `data/cam_boxes.parquet`, one row a local view in
pixels of the upright original, best class of an image first, and `data/cam_maps.zarr`, the class
activation map behind each row. Resumes by block.

    python -m stages.cam_boxes
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from stages import machine
from stages.artifacts import (
    CAM_BOXES,
    CAM_MAPS,
    INDEX,
    WARMUP_STUDENT,
    index_digest,
    read_table,
    usable,
    write_store,
    write_table,
)
from stages.images.loading import Photographs, batches
from stages.job import Job, main
from stages.method.types import Booleans, Floats
from stages.method.views import (
    box_in_pixels,
    candidate_threshold,
    candidates,
    expand_box,
    region_box,
    scale_to_unit,
)
from stages.models.student import activation_maps, load_student, logits_of
from stages.params import CamBoxes, Params
from stages.resume import Arrays, in_blocks


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    rows = usable(index, "train")
    device = machine.device()
    student, note = load_student(WARMUP_STUDENT, device, digest)
    photographs = Photographs(rows, params.cam_boxes.input_size)

    def look(block: range) -> Arrays:
        parts = [
            activation_maps(student, note, views, device)
            for views in batches(photographs, block, machine.batch())
        ]
        maps = torch.cat(parts)
        return {"maps": maps.numpy(), "scores": logits_of(maps).sigmoid().numpy()}

    seen = in_blocks(job, len(rows), machine.block(), "images", look)
    scores = seen["scores"]
    chosen = choose(scores, params.cam_boxes)
    tables, shown = [], []
    for block, arrays in seen:
        here = slice(block.start, block.stop)
        table, maps = locate(
            rows[here],
            arrays["maps"],
            scores[here],
            chosen[here],
            note["classes"],
            params.cam_boxes,
        )
        tables.append(table)
        shown.append(maps)
    provenance = {"index": digest, "student": note["sha256"], "asked": note["classes"]}
    write_table(CAM_BOXES, pd.concat(tables), provenance, job.staging)
    write_store(CAM_MAPS, {"map": np.concatenate(shown)}, provenance, job.staging)


def choose(scores: Floats, params: CamBoxes) -> Booleans:
    """Which classes (images, classes) get a local view, by the parameters' rule."""
    if params.selection == "fixed":
        return candidates(scores, params.threshold)
    return candidates(scores, candidate_threshold(scores, params.mean_views))


def locate(
    rows: pd.DataFrame,
    maps: Floats,
    scores: Floats,
    chosen: Booleans,
    classes: list[str],
    params: CamBoxes,
) -> tuple[pd.DataFrame, Floats]:
    """The boxes of the chosen classes, and their maps scaled to 0..1 at the map's resolution."""
    table, shown = [], []
    sizes = zip(rows["image_id"], rows["width"], rows["height"], strict=True)
    for image, (image_id, width, height) in enumerate(sizes):
        ranked = [c for c in np.argsort(-scores[image], kind="stable") if chosen[image, c]]
        if not ranked:
            continue
        raised = F.interpolate(
            torch.from_numpy(maps[image, ranked])[None], size=params.input_size, mode="bilinear"
        )[0].numpy()
        for rank, c in enumerate(ranked):
            region = region_box(scale_to_unit(raised[rank]), params.cam_threshold)
            box = box_in_pixels(expand_box(region, params.offset), width, height)
            table.append([image_id, classes[c], rank, scores[image, c], *box])
            shown.append(scale_to_unit(maps[image, c]).astype(np.float16))
    shape = (0, *maps.shape[2:])
    return (
        pd.DataFrame(table, columns=list(CAM_BOXES.columns)),
        np.stack(shown) if shown else np.zeros(shape, np.float16),
    )


if __name__ == "__main__":
    main("cam_boxes", run)
