"""Stage `cam_boxes`: where to look; the student says it (section 3.2, Eq. 4).

Reads the index and the warmed-up student. Writes `data/cam_boxes.parquet`, one row a local view in
pixels of the upright original, best class of an image first, and `data/cam_maps.zarr`, the class
activation map behind each row. Resumes by block. Other views need no student: a grid and random
ones, which the paper compares with, overlapping windows, or those of a file; they have no map.

    python -m stages.cam_boxes
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np
import pandas as pd
import torch

from stages.artifacts import CAM_BOXES, CAM_MAPS, WARMUP_STUDENT
from stages.images.prefetch import load_global_views, split_batches
from stages.method.cam import boxes_of_maps, scale_to_unit
from stages.method.views import (
    best_candidates,
    candidates,
    expand_box,
    grid_boxes,
    random_boxes,
    rank_candidates,
    search_parts,
    search_threshold,
    window_boxes,
)
from stages.models.device import block_size, device
from stages.models.student import Student, logits_of
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import CamBoxes, Params
from stages.runtime.progress import say
from stages.runtime.resume import Blocks, in_blocks
from stages.runtime.types import Arrays, Booleans, Floats
from stages.sources.box_table import views_of_file, with_edges
from stages.storage.arrays import Rows, write_store
from stages.storage.index import read_index, usable
from stages.storage.provenance import Provenance
from stages.storage.tables import write_table
from stages.training.augment import weak


def run(params: Params, job: Job) -> None:
    index, digest = read_index()
    rows, settings = usable(index, "train"), params.cam_boxes
    provenance: Provenance = {
        "index": digest,
        "side": settings.input_size,
        "views": settings.views,
    }
    maps = Rows(0, [np.zeros((0, 1, 1), np.float16)])
    if settings.views == "cam":
        student = Student.load(WARMUP_STUDENT, device(), digest)
        config = student.config
        provenance |= {"student": config.sha256, "asked": list(config.classes)}
        seen = look(job, student, rows, settings)
        chosen = choose(seen, student, rows, settings, params.seed)
        boxes = boxes_of(seen, chosen, rows, list(config.classes), settings)
        maps = Rows(len(boxes), maps_of(seen, chosen))
    elif settings.views == "file":
        boxes = views_of_file(settings.boxes, rows, settings.input_size)
    else:
        boxes = boxes_anywhere(rows, settings, params.seed)
    write_table(CAM_BOXES, boxes, provenance, job.staging)
    write_store(CAM_MAPS, {"map": maps}, provenance, job.staging)


def look(job: Job, student: Student, rows: pd.DataFrame, settings: CamBoxes) -> Blocks:
    """The student's maps of all classes, and its scores, of every image."""
    where = device()
    batch = student.batch_size(settings.input_size)

    def maps(blocks: list[range]) -> Iterator[Arrays]:
        batches = (part for block in blocks for part in split_batches(block, batch))
        views = load_global_views(rows, settings.input_size, batches)
        for block in blocks:
            of_block = torch.cat([student.maps(next(views)) for _ in split_batches(block, batch)])
            scores = logits_of(of_block).sigmoid()
            yield {"maps": of_block.cpu().numpy(), "scores": scores.cpu().numpy()}

    return in_blocks(
        job, len(rows), block_size(where), "images", maps, rows["image_id"].iloc.__getitem__
    )


def choose(
    seen: Blocks, student: Student, rows: pd.DataFrame, settings: CamBoxes, seed: int
) -> Booleans:
    """Which classes (images, classes) get a local view."""
    scores = np.concatenate(list(seen.of("scores")))
    if len(scores) > 1 and not np.ptp(scores, axis=0).any():
        raise UserError(
            f"{WARMUP_STUDENT}: the student says the same of every image, so there is nothing to "
            "look for: train it longer (warmup.epochs, or more photographs) or with another "
            "optimiser.lr in params.yaml, and see that student.weights are what you think"
        )
    if settings.selection == "fixed":
        return candidates(scores, settings.threshold)
    if settings.selection == "search":
        shuffled = augmented_scores(student, rows, seed)
        threshold, found = search_threshold(shuffled, settings.threshold, settings.mean_views)
        chosen = candidates(scores, threshold)
        say(f"cam_boxes: the search ended at a threshold of {threshold:.3f}")
        if not found:
            say(
                f"cam_boxes: warning: there the search ran out of images, with "
                f"{chosen.sum() / len(chosen):.1f} views an image: see cam_boxes.threshold, where "
                "it begins, or take `selection: quantile`"
            )
        return chosen
    return best_candidates(scores, settings.mean_views)


def augmented_scores(student: Student, rows: pd.DataFrame, seed: int) -> Iterator[Floats]:
    """Scores of the images in random order, mirrored at random and at the training's size."""
    size = student.config.size
    batch = student.batch_size(size)
    torch.manual_seed(seed)
    order = iter(torch.randperm(len(rows)).tolist())
    wanted = [list(islice(order, count)) for count in search_parts(len(rows))]
    for views in load_global_views(rows, size, wanted):
        mirrored = weak(views)
        parts = split_batches(range(len(mirrored)), batch)
        maps = [student.maps(mirrored[part[0] : part[-1] + 1]) for part in parts]
        yield logits_of(torch.cat(maps)).sigmoid().cpu().numpy()


def boxes_of(
    seen: Blocks, chosen: Booleans, rows: pd.DataFrame, classes: list[str], settings: CamBoxes
) -> pd.DataFrame:
    """The boxes of the chosen classes."""
    names = np.array(classes, dtype=object)
    tables = []
    for block, arrays in seen:
        image, c, rank = rank_candidates(arrays["scores"], chosen[block.start : block.stop])
        boxes = boxes_of_maps(
            arrays["maps"][image, c], settings.input_size, settings.cam_threshold, settings.box
        )
        part = rows.iloc[block.start + image]
        table = pd.DataFrame({"image_id": part["image_id"].to_numpy(), "class": names[c]})
        table["rank"] = rank
        table["score"] = arrays["scores"][image, c]
        grown = expand_box(boxes, settings.offset)
        tables.append(with_edges(table, grown, part, settings.input_size))
    return pd.concat(tables, ignore_index=True)


def maps_of(seen: Blocks, chosen: Booleans) -> Iterator[Floats]:
    """The map behind each box, scaled to 0..1, at its own resolution, a block at a time."""
    for block, arrays in seen:
        image, c, _ = rank_candidates(arrays["scores"], chosen[block.start : block.stop])
        yield scale_to_unit(arrays["maps"][image, c]).astype(np.float16)


def boxes_anywhere(rows: pd.DataFrame, settings: CamBoxes, seed: int) -> pd.DataFrame:
    """`mean_views` views of every image, of no class: tiles, windows, or random ones."""
    rng = np.random.default_rng(seed)
    count = int(settings.mean_views)
    if settings.views != "random":
        tiles = grid_boxes(round(count**0.5)) if settings.views == "grid" else window_boxes(count)
        boxes = np.tile(tiles, (len(rows), 1))
    else:
        boxes = np.concatenate([random_boxes(count, rng) for _ in range(len(rows))])
    part = rows.loc[rows.index.repeat(count)]
    table = pd.DataFrame({"image_id": part["image_id"].to_numpy(), "class": ""})
    table["rank"] = np.tile(np.arange(count), len(rows))
    table["score"] = np.nan
    return with_edges(table, boxes, part, settings.input_size)


if __name__ == "__main__":
    main("cam_boxes", run, on_ranks=True)
