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
from torch import Tensor

from stages import machine
from stages.artifacts import (
    CAM_BOXES,
    CAM_MAPS,
    INDEX,
    WARMUP_STUDENT,
    Rows,
    index_digest,
    parts_of,
    read_table,
    usable,
    write_store,
    write_table,
)
from stages.errors import UserError
from stages.images.augment import weak
from stages.images.loading import batches_of, global_views
from stages.job import Job, main
from stages.method.types import Booleans, Floats, Integers
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
from stages.models.student import (
    Student,
    activation_maps,
    fitting_batch,
    layer_cam,
    load_student,
    logits_of,
)
from stages.models.weights import Note
from stages.params import CamBoxes, Params
from stages.progress import say
from stages.resume import Arrays, Blocks, in_blocks
from stages.sources.box_table import EDGES, KEY, box_table

PART = 100  # images that the published script counts candidates in at a time
CELLS = 1 << 22  # of enlarged maps at a time


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    rows = usable(index, "train")
    settings = params.cam_boxes
    provenance = {"index": digest, "side": settings.input_size, "views": settings.views}
    boxes: pd.DataFrame | Iterator[pd.DataFrame]
    maps = iter([np.zeros((0, 1, 1), np.float16)])
    views: list[Integers] = []
    if settings.views == "cam":
        student, note = load_student(WARMUP_STUDENT, machine.device(), digest)
        looked = look(job, student, note, rows, settings)
        chosen = choose(looked, student, note, rows, settings, params.seed)
        provenance |= {"student": note["sha256"], "asked": note["classes"]}
        boxes = located(rows, looked, chosen, note["classes"], settings, views)
        maps = shown(looked, chosen, views)
    elif settings.views == "file":
        boxes = given(rows, settings)
    else:
        boxes = placed(rows, settings, params.seed)
    write_table(CAM_BOXES, boxes, provenance, job.staging)
    count = sum(int(of_each.sum()) for of_each in views)
    write_store(CAM_MAPS, {"map": Rows(count, maps)}, provenance, job.staging)


def look(job: Job, student: Student, note: Note, rows: pd.DataFrame, settings: CamBoxes) -> Blocks:
    """The student's maps of all classes, and its scores, of every image."""
    device, size = machine.device(), settings.input_size
    batch = fitting_batch(student, note, max(map(settings.side, settings.scales)), device)
    plain = (settings.map, settings.scales, settings.mirror) == ("cam", (1.0,), False)

    def maps(blocks: list[range]) -> Iterator[Arrays]:
        views = global_views(
            rows, size, (part for block in blocks for part in batches_of(block, batch))
        )
        for block in blocks:
            found, logits = [], []
            for _ in batches_of(block, batch):
                some = machine.move(next(views), device)
                own = activation_maps(student, note, some, device)
                logits.append(logits_of(own))
                found.append(own if plain else better_maps(student, note, some, own, settings))
            scores = torch.cat(logits).sigmoid()
            yield {"maps": torch.cat(found).cpu().numpy(), "scores": scores.cpu().numpy()}

    return in_blocks(job, len(rows), machine.block(device), "images", maps)


def better_maps(
    student: Student, note: Note, views: Tensor, own: Tensor, settings: CamBoxes
) -> Tensor:
    """Maps (n, classes, h, w) of uint8 views, the mean over `scales` and, if asked, mirroring.

    views: on the student's device; own: their class activation maps as they are, to whose cells the
    maps of other sizes are resized.
    """
    looking = {"cam": activation_maps, "layercam": layer_cam}[settings.map]
    device, cells = str(views.device), own.shape[-2:]
    found = []
    for scale in settings.scales:
        side, resized = settings.side(scale), views
        if scale != 1:
            resized = F.interpolate(views.float(), (side, side), mode="bilinear", antialias=True)
        for mirrored in (False, True) if settings.mirror else (False,):
            if (settings.map, scale, mirrored) == ("cam", 1, False):
                maps = own
            elif mirrored:
                maps = looking(student, note, resized.flip(-1), device).flip(-1)
            else:
                maps = looking(student, note, resized, device)
            if maps.shape[-2:] != cells:
                maps = F.interpolate(maps, size=cells, mode="bilinear", antialias=True)
            found.append(maps)
    return torch.stack(found).mean(dim=0)


def choose(
    looked: Blocks, student: Student, note: Note, rows: pd.DataFrame, settings: CamBoxes, seed: int
) -> Booleans:
    """Which classes (images, classes) get a local view."""
    scores = np.concatenate(list(looked.of("scores")))
    if settings.selection == "fixed":
        return candidates(scores, settings.threshold)
    if settings.selection == "search":
        shuffled = augmented_scores(student, note, rows, seed)
        threshold = search_threshold(shuffled, settings.threshold, settings.mean_views)
        say(f"cam_boxes: the search ended at a threshold of {threshold:.3f}")
        return candidates(scores, threshold)
    if settings.margin == "class_mean":
        scores = above_class_mean(scores)
    return candidates(scores, candidate_threshold(scores, settings.mean_views))


def augmented_scores(
    student: Student, note: Note, rows: pd.DataFrame, seed: int
) -> Iterator[Floats]:
    """Scores of the images in random order, mirrored at random and at the training's size."""
    device, size = machine.device(), note["size"]
    batch = fitting_batch(student, note, size, device)
    torch.manual_seed(seed)
    order = torch.randperm(len(rows)).tolist()
    for views in global_views(rows, size, batches_of(order, PART)):
        mirrored = weak(views)
        parts = [
            activation_maps(student, note, mirrored[part[0] : part[-1] + 1], device)
            for part in batches_of(range(len(mirrored)), batch)
        ]
        yield logits_of(torch.cat(parts)).sigmoid().cpu().numpy()


def located(
    rows: pd.DataFrame,
    looked: Blocks,
    chosen: Booleans,
    classes: list[str],
    settings: CamBoxes,
    views: list[Integers],
) -> Iterator[pd.DataFrame]:
    """The boxes of the chosen classes, a block at a time.

    What a block appends to `views` is how many boxes each of its chosen maps gives.
    """
    names = np.array(classes, dtype=object)
    for block, arrays in looked:
        image, c, rank = ranked(arrays["scores"], chosen[block.start : block.stop])
        boxes, of_each = regions(arrays["maps"], image, c, settings)
        views.append(of_each)
        image, c, rank = (np.repeat(values, of_each) for values in (image, c, rank))
        part = rows.iloc[block.start + image]
        table = pd.DataFrame(
            {
                "image_id": part["image_id"].to_numpy(),
                "class": names[c],
                "rank": rank,
                "score": arrays["scores"][image, c],
            }
        )
        yield with_edges(table, expand_box(boxes, settings.offset), part, settings)


def shown(looked: Blocks, chosen: Booleans, views: list[Integers]) -> Iterator[Floats]:
    """The map behind each box, scaled to 0..1, at its own resolution, a block at a time."""
    for (block, arrays), of_each in zip(looked, views, strict=True):
        image, c, _ = ranked(arrays["scores"], chosen[block.start : block.stop])
        maps = scale_to_unit(arrays["maps"][image, c]).astype(np.float16)
        yield np.repeat(maps, of_each, axis=0)


def ranked(scores: Floats, chosen: Booleans) -> tuple[Integers, Integers, Integers]:
    """Image, class and rank of what is `chosen` (images, classes): by image, best class first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    wanted = np.take_along_axis(chosen, order, axis=1)
    image, place = np.nonzero(wanted)
    return image, order[image, place], (np.cumsum(wanted, axis=1) - 1)[image, place]


def regions(
    maps: Floats, image: Integers, c: Integers, settings: CamBoxes
) -> tuple[Floats, Integers]:
    """Boxes (boxes, 4) around the most active parts of some maps, and how many each map gives.

    maps: (images, classes, height, width), enlarged to the student's input before; image, c: of
    each map that is asked for.
    """
    boxes: list[Floats] = [np.empty((0, 4))]
    counts = np.ones(len(image), np.int64)
    for part in parts_of(len(image), max(1, CELLS // settings.input_size**2)):
        raised = F.interpolate(
            torch.from_numpy(maps[image[part], c[part]])[:, None],
            size=(settings.input_size, settings.input_size),
            mode="bilinear",
        )[:, 0].numpy()
        if settings.box == "tight":
            boxes.append(region_box(scale_to_unit(raised), settings.cam_threshold))
            continue
        for number, activation in enumerate(raised, part.start):
            found = regions_of(activation, settings)
            boxes.append(np.array(found))
            counts[number] = len(found)
    return np.concatenate(boxes), counts


def regions_of(activation: Floats, settings: CamBoxes) -> list[Box]:
    """The boxes of one map (height, width) as published, or one for each connected region."""
    if settings.box == "first_last":
        return [first_last_box(activation, settings.cam_threshold)]
    return region_boxes(scale_to_unit(activation), settings.cam_threshold)


def placed(rows: pd.DataFrame, settings: CamBoxes, seed: int) -> pd.DataFrame:
    """`mean_views` views of every image, of no class: a grid's tiles, or random ones."""
    rng = np.random.default_rng(seed)
    count = int(settings.mean_views)
    if settings.views == "grid":
        boxes = np.tile(grid_boxes(round(count**0.5)), (len(rows), 1))
    else:
        boxes = np.concatenate([random_boxes(count, rng) for _ in range(len(rows))])
    part = rows.loc[rows.index.repeat(count)]
    table = pd.DataFrame({"image_id": part["image_id"].to_numpy(), "class": ""})
    table["rank"] = np.tile(np.arange(count), len(rows))
    table["score"] = np.nan
    return with_edges(table, boxes, part, settings)


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


def with_edges(
    table: pd.DataFrame, boxes: Floats, part: pd.DataFrame, settings: CamBoxes
) -> pd.DataFrame:
    """`table` with the edges of `boxes`: in pixels of the originals, the index's rows `part`, and
    of the squashed image.
    """
    width, height = part["width"].to_numpy(), part["height"].to_numpy()
    table[EDGES] = box_in_pixels(boxes, width, height)
    table[["u0", "v0", "u1", "v1"]] = box_in_pixels(boxes, settings.input_size, settings.input_size)
    return table


if __name__ == "__main__":
    main("cam_boxes", run, on_ranks=True)
