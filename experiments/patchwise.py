"""What a frozen teacher says of held-out images by their patches, without any training.

    python -m experiments.table1

The best patch by the text, PIAA as published and restated, and TagCLIP's words for what is no class
with a second look. Reads the index, the embeddings of images and class names, the teacher and, to
judge, the ground truth; PIAA fits its classifier to the patches of the training images. Writes
`results/table1/patchwise.json`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from experiments import piaa
from experiments.boxes import embed_boxes
from experiments.patches import Patches, enlarged
from experiments.results import judged, read_data, write_result
from experiments.tagclip import BACKGROUND, background_of, probabilities, second_looks
from stages.artifacts import CLASS_TEXT, GLOBAL_CLIP, TEACHER
from stages.images.normalise import normalise
from stages.images.prefetch import load_global_views, split_batches
from stages.method.views import Box, box_in_pixels
from stages.models.device import device, move
from stages.models.teacher import Teacher
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.runtime.types import Floats
from stages.storage.arrays import read_store
from stages.storage.index import ID_COLUMNS, read_index

BATCH = 16


class Looks(NamedTuple):
    """Second looks: the image (its row) and class of each, and where, in shares of the sides."""

    image: list[int]
    c: list[int]
    box: list[Box]


def run(params: Params, job: Job) -> None:
    data, where = read_data(), device()
    judge_by = data.judged
    index, _ = read_index(ID_COLUMNS)
    images, _ = read_store(GLOBAL_CLIP, data.digest)
    stored, of_texts = read_store(CLASS_TEXT)
    data.must_be_of(of_texts["classes"])
    teacher = Teacher(TEACHER, where, params.local_clip.precision)
    text = torch.from_numpy(stored["embedding"][...]).to(where)
    background = words_of_no_class(teacher, data.classes, text, params.class_text.templates)
    patches, size = Patches(teacher), enlarged(params.global_clip.view_size)
    bank = piaa.empty_bank(text)
    for maps in embedded(patches, data.rows, size):
        bank = piaa.banked(bank, maps.flatten(0, 2), text)
    classifiers = piaa.published(bank, text), piaa.restated(bank, text)
    held_out = index["image_id"].isin(data.held_out["image_id"]).to_numpy()
    whole = torch.from_numpy(images["embedding"][...][held_out]).to(where) @ text.T
    scores: dict[str, list[Tensor]] = {}
    looks, first = Looks([], [], []), 0
    for maps in embedded(patches, data.held_out, size):
        own = whole[first : first + len(maps)]
        p = probabilities(maps, text, background, of_texts["temperature"])
        for name, of_batch in scored(maps, own, text, classifiers, of_texts["temperature"]).items():
            scores.setdefault(name, []).append(of_batch)
        scores.setdefault("tagclip", []).append(p.amax(dim=(1, 2)))
        for image, of_image in enumerate(p, start=first):
            for c, box in second_looks(of_image):
                looks.image.append(image)
                looks.c.append(c)
                looks.box.append(box)
        first += len(maps)
    found = {name: torch.cat(of).cpu().numpy() for name, of in scores.items()}
    if looks.image:
        seen = torch.from_numpy(look_again(params, data.held_out, looks)).to(where)
        said = probabilities(seen, text, background, of_texts["temperature"]).cpu().numpy()
        found["tagclip"] = with_looks(found["tagclip"], said, looks)
    result = {name: judged(judge_by, of) for name, of in found.items()}
    write_result(job, "patchwise", result)
    say(f"patchwise: {result}")


def words_of_no_class(
    teacher: Teacher, classes: list[str], text: Tensor, templates: tuple[str, ...]
) -> Tensor:
    """Unit embeddings (words, dim) of TagCLIP's words that name none of the classes."""
    said = [teacher.embed_class([t.replace("{}", word) for t in templates]) for word in BACKGROUND]
    return background_of(classes, text, BACKGROUND, torch.stack(said).to(text))


def embedded(patches: Patches, rows: pd.DataFrame, size: int) -> Iterator[Tensor]:
    """Unit embeddings (n, rows, columns, dim) of the patches of the index's `rows`, in batches."""
    teacher = patches.teacher
    for views in load_global_views(rows, size, split_batches(range(len(rows)), BATCH)):
        inputs = normalise(move(views, teacher.device), teacher.mean, teacher.std)
        yield patches(inputs).movedim(1, -1)


def scored(
    maps: Tensor,
    whole: Tensor,
    text: Tensor,
    classifiers: tuple[piaa.Discriminant, piaa.Discriminant],
    temperature: float,
) -> dict[str, Tensor]:
    """Scores (n, classes) by name, of patches (n, rows, columns, dim) and of whole images' cosines
    `whole` (n, classes); classifiers: PIAA's, as published and restated.
    """
    published, restated = (of(maps).flatten(1, 2) for of in classifiers)
    return {
        "patches": (maps @ text.T / temperature).softmax(dim=-1).amax(dim=(1, 2)),
        "piaa": piaa.published_scores(published, whole),
        "piaa_restated": piaa.restated_scores(restated, (whole / temperature).softmax(dim=-1)),
    }


def with_looks(first: Floats, said: Floats, looks: Looks) -> Floats:
    """Scores (images, classes), the mean of `first` and, where there was a second look, of that.

    said: of all classes, (looks, classes).
    """
    places, again = (looks.image, looks.c), first.copy()
    again[places] = (first[places] + said[range(len(said)), looks.c]) / 2
    return again


def look_again(params: Params, rows: pd.DataFrame, looks: Looks) -> Floats:
    """Embeddings (looks, dim) of what is in their boxes."""
    image = np.array(looks.image, dtype=np.int64)
    width, height = (rows[side].to_numpy()[image] for side in ("width", "height"))
    edges = box_in_pixels(np.array(looks.box), width, height)
    return embed_boxes(params, rows, image, edges)


if __name__ == "__main__":
    declared_by = partial(declaration, "patchwise", file=Path("experiments/dvc.yaml"))
    main("patchwise", run, declared_by=declared_by)
