"""NUS-WIDE, in its official form and in the re-crawled lists that most papers use.

Both have the photographs in `root/Flickr/actor/0001_2124494179.jpg`; an image's id is the path
below `Flickr`.

    official:     root/ImageList/TrainImagelist.txt             lines of actor\\0001_2124494179.jpg
                  root/Groundtruth/TrainTestLabels/Labels_sky_Train.txt      lines of 0 or 1
    re-crawled:   root/spml/formatted_train_images.npy          (images,) text
                  root/spml/formatted_train_labels.npy          (images, 81) 0 or 1; "val" to test
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.runtime.errors import UserError, reason
from stages.sources.photograph import Photograph, lines_of, listed

OFFICIAL = {"train": "Train", "test": "Test"}
RECRAWLED = {"train": "train", "test": "val"}


def photographs(root: str) -> list[Photograph]:
    """The official images, in the order of the official lists."""
    photos = []
    for split, part in OFFICIAL.items():
        path = Path(root) / f"ImageList/{part}Imagelist.txt"
        photos += _photographs(root, _official_names(path, "source.root"), split, path)
    return photos


def labels(folder: str, classes: list[str]) -> tuple[list[str], np.ndarray]:
    """The ids of the images of `photographs`, and their labels (images, classes).

    folder: `Groundtruth/TrainTestLabels`; `ImageList` is beside `Groundtruth`.
    """
    ids: list[str] = []
    values = []
    for part in OFFICIAL.values():
        lists = Path(folder).parent.parent / f"ImageList/{part}Imagelist.txt"
        names = _official_names(lists, "source.labels")
        ids += names
        columns = []
        for name in classes:
            path = Path(folder) / f"Labels_{name}_{part}.txt"
            lines = lines_of(path, "source.labels")
            if len(lines) != len(names) or not set(lines) <= {"0", "1"}:
                raise UserError(
                    f"{path} has {len(lines)} lines, {lists.name} {len(names)}; "
                    "every line must be 0 or 1"
                )
            columns.append(np.array(lines, np.float32))
        values.append(np.stack(columns, axis=1))
    return ids, np.concatenate(values)


def recrawled_photographs(root: str) -> list[Photograph]:
    """The re-crawled images, in the order of their lists."""
    photos = []
    for split, part in RECRAWLED.items():
        path = Path(root) / f"spml/formatted_{part}_images.npy"
        photos += _photographs(root, _recrawled_names(path, "source.root"), split, path)
    return photos


def recrawled_labels(folder: str, classes: list[str]) -> tuple[list[str], np.ndarray]:
    """The ids of the images of `recrawled_photographs`, and their labels (images, classes).

    The labels' columns have no names: they are taken to be in the order of `classes`, which must be
    the alphabetical one.
    """
    if classes != sorted(classes):
        raise UserError(
            "source.classes in params.yaml: the columns of nuswide_spml are in alphabetical order; "
            "the class list must be too"
        )
    ids: list[str] = []
    values = []
    for part in RECRAWLED.values():
        names = _recrawled_names(Path(folder) / f"formatted_{part}_images.npy", "source.labels")
        path = Path(folder) / f"formatted_{part}_labels.npy"
        given = _array(path, "source.labels")
        if given.shape != (len(names), len(classes)):
            raise UserError(
                f"{path} is of shape {given.shape}; there are {len(names)} images and "
                f"{len(classes)} classes"
            )
        if not np.isin(given, (0, 1)).all():
            raise UserError(f"{path} holds other values than 0 and 1")
        ids += names
        values.append(given.astype(np.float32))
    return ids, np.concatenate(values)


def _photographs(root: str, names: list[str], split: str, path: Path) -> list[Photograph]:
    return listed(root, [(name, f"Flickr/{name}") for name in names], split, str(path))


def _official_names(path: Path, key: str) -> list[str]:
    return [line.replace("\\", "/") for line in lines_of(path, key)]


def _recrawled_names(path: Path, key: str) -> list[str]:
    names = _array(path, key)
    if names.ndim != 1 or names.dtype.kind != "U":
        raise UserError(f"{path} is no list of names")
    return [str(name) for name in names]


def _array(path: Path, key: str) -> np.ndarray:
    try:
        content: Any = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{key} in params.yaml: {path} cannot be read: {reason(error)}") from None
    if not isinstance(content, np.ndarray):
        raise UserError(f"{path} is no single array")
    return content
