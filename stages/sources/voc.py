"""Pascal VOC: the VOCdevkit layout. Labels are of images, as in `ImageSets/Main`.

    root/VOC2012/JPEGImages/2008_000002.jpg
    root/VOC2012/ImageSets/Main/train.txt               lines of 2008_000002
    root/VOC2012/ImageSets/Main/aeroplane_train.txt     lines of 2008_000002 -1

As in the published lists, VOC 2007 is trained on trainval and tested on test, VOC 2012 on train and
val, and images are sorted by name. In a class's list 1 says it is there, -1 that it is not, and 0
that it is there but only as something difficult to see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from stages.runtime.errors import UserError
from stages.sources.photograph import Photograph, lines_of, listed, numbered_lines

Year = Literal["2007", "2012"]
Difficult = Literal["negative", "positive", "ignore"]
SPLITS = {
    "2007": {"train": "trainval", "test": "test"},
    "2012": {"train": "train", "test": "val"},
}


def photographs(root: str, year: Year) -> list[Photograph]:
    """The images of both splits; an image's id is its name without the suffix."""
    photos = []
    for split, part in SPLITS[year].items():
        path = Path(root) / f"VOC{year}/ImageSets/Main/{part}.txt"
        names = sorted(lines_of(path, "source.root"))
        entries = [(name, f"VOC{year}/JPEGImages/{name}.jpg") for name in names]
        photos += listed(root, entries, split, str(path))
    return photos


def labels(
    folder: str, classes: list[str], difficult: Difficult, year: Year
) -> tuple[list[str], np.ndarray]:
    """The ids of the images of `photographs`, and their labels (images, classes).

    folder: `ImageSets/Main`. difficult: what becomes of the value 0; to ignore it is NaN.
    """
    meaning = {"-1": 0.0, "1": 1.0}
    meaning["0"] = {"negative": 0.0, "positive": 1.0, "ignore": np.nan}[difficult]
    ids: list[str] = []
    values = []
    for part in SPLITS[year].values():
        names = sorted(lines_of(Path(folder) / f"{part}.txt", "source.labels"))
        columns = [
            _of_class(Path(folder) / f"{name}_{part}.txt", names, meaning) for name in classes
        ]
        ids += names
        values.append(np.stack(columns, axis=1))
    return ids, np.concatenate(values)


def _of_class(path: Path, names: list[str], meaning: dict[str, float]) -> np.ndarray:
    given: dict[str, float] = {}
    said: dict[str, int] = {}
    for number, line in numbered_lines(path, "source.labels"):
        name, *value = line.split()
        if len(value) != 1 or value[0] not in meaning:
            raise UserError(f"{path}: {line!r} is no image and one of -1, 0, 1")
        now = meaning[value[0]]
        before = given.setdefault(name, now)
        if not (before == now or np.isnan([before, now]).all()):
            raise UserError(
                f"{path}: lines {said[name]} and {number} contradict each other: {line!r}"
            )
        said.setdefault(name, number)
    missing = [name for name in names if name not in given]
    if missing:
        raise UserError(f"{path} has no line for {len(missing)} images, as {missing[0]}")
    return np.array([given[name] for name in names], np.float32)
