"""COCO: the official 2014 layout, and annotations of its form for anything else.

    root/annotations/instances_train2014.json   root/train2014/COCO_train2014_000000000009.jpg
    root/annotations/instances_val2014.json     root/val2014/…

As in the published lists: images without an annotation are left out, the others sorted by their id
as text; a class is on an image that has an annotation of it, a crowd's too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from stages.runtime.errors import UserError, reason
from stages.sources.photograph import Photograph, listed

SPLITS = {"train": "train2014", "test": "val2014"}


class Image(TypedDict):
    """A line of the file's `images`, as far as it is used."""

    id: int
    file_name: str


@dataclass(frozen=True)
class Annotations:
    """A file of annotations; `images` as in the file, `categories` their names by ascending id."""

    path: Path
    images: list[Image]
    categories: dict[int, str]
    pairs: list[tuple[int, int]]  # image id, category id

    def labels(self, image_ids: Sequence[int], classes: list[str]) -> np.ndarray:
        """(images, classes): 1 where the image has an annotation of the class, else 0."""
        names = list(self.categories.values())
        if sorted(names) != sorted(classes):
            odd = sorted(set(names) ^ set(classes))
            raise UserError(
                f"{self.path} and source.classes in params.yaml differ in classes, as in "
                f"{odd[0]!r}; the file's are: {', '.join(names)}"
            )
        row = {image: position for position, image in enumerate(image_ids)}
        column = {number: classes.index(name) for number, name in self.categories.items()}
        values = np.zeros((len(image_ids), len(classes)), np.float32)
        for image, category in self.pairs:
            if image in row:
                values[row[image], column[category]] = 1
        return values


def read_annotations(path: Path, key: str) -> Annotations:
    """The annotations of a JSON file in COCO's form; `key` is the parameter that led to it."""
    try:
        content = json.loads(path.read_bytes())
        categories = {_number(c["id"]): str(c["name"]) for c in content["categories"]}
        images: list[Image] = [
            {"id": _number(i["id"]), "file_name": str(i["file_name"])} for i in content["images"]
        ]
        pairs = [
            (_number(a["image_id"]), _number(a["category_id"])) for a in content["annotations"]
        ]
    except RecursionError:
        raise UserError(f"{key} in params.yaml: {path} is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{key} in params.yaml: {path} cannot be read: {reason(error)}") from None
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{key} in params.yaml: {path} is not of COCO's form: {type(error).__name__} {error}"
        ) from None
    if len(categories) != len(content["categories"]) or len(set(categories.values())) != len(
        categories
    ):
        raise UserError(f"{path}: a category comes twice")
    ids = {image["id"] for image in images}
    if len(ids) != len(images):
        raise UserError(f"{path}: two images have the same id")
    if not {image for image, _ in pairs} <= ids:
        raise UserError(f"{path}: an annotation is of an image that is not listed")
    strangers = {category for _, category in pairs} - set(categories)
    if strangers:
        raise UserError(f"{path}: an annotation is of category {min(strangers)}, which is none")
    return Annotations(path, images, dict(sorted(categories.items())), pairs)


def _number(given: object) -> int:
    """An id, which some tools write as 7.0 or as "7"."""
    number = float(str(given))
    if not number.is_integer():
        raise ValueError(f"the id {given!r} is no whole number")
    return given if isinstance(given, int) else int(number)


def photographs(root: str) -> list[Photograph]:
    """The official images that have an annotation, of both splits."""
    photos = []
    for split, folder in SPLITS.items():
        annotations = _official(Path(root) / "annotations", folder, "source.root")
        names = [f"{folder}/{image['file_name']}" for image in _annotated(annotations)]
        photos += listed(root, zip(names, names, strict=True), split, str(annotations.path))
    return photos


def labels(folder: str, classes: list[str]) -> tuple[list[str], np.ndarray]:
    """The ids of the images of `photographs`, and their labels (images, classes)."""
    ids: list[str] = []
    values = []
    for part in SPLITS.values():
        annotations = _official(Path(folder), part, "source.labels")
        images = _annotated(annotations)
        ids += [f"{part}/{image['file_name']}" for image in images]
        values.append(annotations.labels([image["id"] for image in images], classes))
    return ids, np.concatenate(values)


def _official(folder: Path, part: str, key: str) -> Annotations:
    return read_annotations(folder / f"instances_{part}.json", key)


def _annotated(annotations: Annotations) -> list[Image]:
    wanted = {image for image, _ in annotations.pairs}
    kept = [image for image in annotations.images if image["id"] in wanted]
    return sorted(kept, key=lambda image: str(image["id"]))
