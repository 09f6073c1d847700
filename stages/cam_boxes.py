"""Stage `cam_boxes`: where to look; the student says it (section 3.2, Eq. 4).

Reads the index and the warmed-up student. Writes `data/cam_boxes.parquet`, one row a local view in
pixels of the upright original, best class of an image first, and `data/cam_maps.zarr`, the class
activation map behind each row. Resumes by block. Other views, which the paper compares with, need
no student: a grid, random ones, or those of a file; they have no map.

    python -m stages.cam_boxes
"""

from __future__ import annotations

from collections.abc import Iterator

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
from stages.errors import UserError
from stages.images.augment import weak
from stages.images.loading import Photographs, batches
from stages.job import Job, main
from stages.method.types import Booleans, Floats
from stages.method.views import (
    Box,
    above_class_mean,
    box_in_pixels,
    candidate_threshold,
    candidates,
    expand_box,
    first_last_box,
    grid_boxes,
    random_boxes,
    region_box,
    region_boxes,
    scale_to_unit,
    search_threshold,
)
from stages.models.student import Student, activation_maps, load_student, logits_of
from stages.models.weights import Note
from stages.params import CamBoxes, Params
from stages.progress import say
from stages.resume import Arrays, in_blocks
from stages.sources.box_table import EDGES, KEY, box_table

PART = 100  # images that the published script counts candidates in at a time


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    rows = usable(index, "train")
    settings = params.cam_boxes
    provenance = {"index": digest, "side": settings.input_size, "views": settings.views}
    maps = np.zeros((0, 1, 1), np.float16)
    if settings.views == "cam":
        student, note = load_student(WARMUP_STUDENT, machine.device(), digest)
        boxes, maps = seen(job, student, note, rows, settings, params.seed)
        provenance |= {"student": note["sha256"], "asked": note["classes"]}
    elif settings.views == "file":
        boxes = given(rows, settings)
    else:
        boxes = placed(rows, settings, params.seed)
    write_table(CAM_BOXES, boxes, provenance, job.staging)
    write_store(CAM_MAPS, {"map": maps}, provenance, job.staging)


def seen(
    job: Job, student: Student, note: Note, rows: pd.DataFrame, settings: CamBoxes, seed: int
) -> tuple[pd.DataFrame, Floats]:
    """The student's own views: boxes, and their maps scaled to 0..1 at the map's resolution."""
    device = machine.device()
    photographs = Photographs(rows, settings.input_size)

    def look(block: range) -> Arrays:
        parts = [
            activation_maps(student, note, views, device)
            for views in batches(photographs, block, machine.batch())
        ]
        maps = torch.cat(parts)
        return {"maps": maps.numpy(), "scores": logits_of(maps).sigmoid().numpy()}

    looked = in_blocks(job, len(rows), machine.block(), "images", look)
    scores = looked["scores"]
    if settings.selection == "search":
        shuffled = augmented_scores(student, note, rows, seed)
        threshold = search_threshold(shuffled, settings.threshold, settings.mean_views)
        say(f"cam_boxes: the search ended at a threshold of {threshold:.3f}")
        chosen = candidates(scores, threshold)
    else:
        chosen = choose(scores, settings)
    tables, shown = [], []
    for block, arrays in looked:
        here = slice(block.start, block.stop)
        table, maps = locate(
            rows[here], arrays["maps"], scores[here], chosen[here], note["classes"], settings
        )
        tables.append(table)
        shown.append(maps)
    return pd.concat(tables), np.concatenate(shown)


def choose(scores: Floats, settings: CamBoxes) -> Booleans:
    """Which classes (images, classes) get a local view: by a fixed threshold, or the quantile's."""
    if settings.selection == "fixed":
        return candidates(scores, settings.threshold)
    if settings.margin == "class_mean":
        scores = above_class_mean(scores)
    return candidates(scores, candidate_threshold(scores, settings.mean_views))


def augmented_scores(
    student: Student, note: Note, rows: pd.DataFrame, seed: int
) -> Iterator[Floats]:
    """Scores of the images in random order, mirrored at random and at the training's size."""
    device = machine.device()
    torch.manual_seed(seed)
    order = torch.randperm(len(rows)).tolist()
    for views in batches(Photographs(rows, note["size"]), order, PART):
        mirrored, batch = weak(views), machine.batch()
        parts = [mirrored[start : start + batch] for start in range(0, len(mirrored), batch)]
        maps = torch.cat([activation_maps(student, note, part, device) for part in parts])
        yield logits_of(maps).sigmoid().numpy()


def locate(
    rows: pd.DataFrame,
    maps: Floats,
    scores: Floats,
    chosen: Booleans,
    classes: list[str],
    settings: CamBoxes,
) -> tuple[pd.DataFrame, Floats]:
    """The boxes of the chosen classes, and their maps scaled to 0..1 at the map's resolution."""
    table, shown = [], []
    sizes = zip(rows["image_id"], rows["width"], rows["height"], strict=True)
    for image, (image_id, width, height) in enumerate(sizes):
        ranked = [c for c in np.argsort(-scores[image], kind="stable") if chosen[image, c]]
        if not ranked:
            continue
        raised = F.interpolate(
            torch.from_numpy(maps[image, ranked])[None], size=settings.input_size, mode="bilinear"
        )[0].numpy()
        for rank, c in enumerate(ranked):
            small = scale_to_unit(maps[image, c]).astype(np.float16)
            for region in regions_of(raised[rank], settings):
                edges = _edges(expand_box(region, settings.offset), width, height, settings)
                table.append([image_id, classes[c], rank, scores[image, c], *edges])
                shown.append(small)
    shape = (0, *maps.shape[2:])
    return (
        pd.DataFrame(table, columns=list(CAM_BOXES.columns)),
        np.stack(shown) if shown else np.zeros(shape, np.float16),
    )


def regions_of(activation: Floats, settings: CamBoxes) -> list[Box]:
    """The boxes around the most active part of a map (height, width), before they grow."""
    if settings.box == "first_last":
        return [first_last_box(activation, settings.cam_threshold)]
    unit_map = scale_to_unit(activation)
    if settings.box == "regions":
        return region_boxes(unit_map, settings.cam_threshold)
    return [region_box(unit_map, settings.cam_threshold)]


def placed(rows: pd.DataFrame, settings: CamBoxes, seed: int) -> pd.DataFrame:
    """`mean_views` views of every image, of no class: a grid's tiles, or random ones."""
    rng = np.random.default_rng(seed)
    count = int(settings.mean_views)
    table = []
    for image_id, width, height in zip(
        rows["image_id"], rows["width"], rows["height"], strict=True
    ):
        boxes = (
            grid_boxes(round(count**0.5)) if settings.views == "grid" else random_boxes(count, rng)
        )
        for rank, box in enumerate(boxes):
            table.append([image_id, "", rank, np.nan, *_edges(box, width, height, settings)])
    return pd.DataFrame(table, columns=list(CAM_BOXES.columns))


def given(rows: pd.DataFrame, settings: CamBoxes) -> pd.DataFrame:
    """The views of the user's file that are of training images, in the index's order."""
    boxes = box_table(settings.boxes)
    sized = rows[["image_id", "width", "height"]].reset_index(names="row")
    found = boxes.merge(sized, on="image_id").sort_values("row", kind="stable", ignore_index=True)
    say(
        f"cam_boxes: {len(found)} views of {found['image_id'].nunique()} of {len(rows)} images "
        f"from {settings.boxes}; {len(boxes) - len(found)} of other images are left out"
    )
    outside = found[(found["x1"] > found["width"]) | (found["y1"] > found["height"])]
    if len(outside):
        raise UserError(f"{KEY}: a box of {outside['image_id'].iloc[0]} reaches out of the image")
    scale = settings.input_size / found[["width", "height", "width", "height"]].to_numpy()
    squashed = found[EDGES].to_numpy() * scale
    found[["u0", "v0"]] = np.floor(squashed[:, :2] + 1e-6).astype(np.int32)
    found[["u1", "v1"]] = np.ceil(squashed[:, 2:] - 1e-6).astype(np.int32)
    found["rank"] = found.groupby("image_id").cumcount().astype(np.int32)
    found["score"] = np.float32(np.nan)
    return found[list(CAM_BOXES.columns)]


def _edges(box: Box, width: int, height: int, settings: CamBoxes) -> tuple[int, ...]:
    """x0, y0, x1, y1 in pixels of the original, then u0, v0, u1, v1 in those of the squashed."""
    side = settings.input_size
    return box_in_pixels(box, width, height) + box_in_pixels(box, side, side)


if __name__ == "__main__":
    main("cam_boxes", run)
