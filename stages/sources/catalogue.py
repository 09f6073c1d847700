"""The published data sets: the one place to add another.

For each kind of source but a folder, which photographs and labels it has, and what its published
splits hold, to tell a complete data set from one that is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from stages.sources import coco, nuswide, voc
from stages.sources.photograph import Photograph
from stages.sources.voc import Difficult

NOTHING: Mapping[str, float] = MappingProxyType({})

# ids of images, and labels (images, classes): 0, 1, or NaN where a pair is not judged
Labels = tuple[list[str], np.ndarray]


class Published(NamedTuple):
    """What is known of a published data set, each by split.

    order: digest of the class names in their published order, a line each. labels_per_image: on
    average, objects that are only difficult to see counted as absent. unlabelled: images without a
    label. positives: images of each class.
    """

    images: Mapping[str, int]
    order: str
    labels_per_image: Mapping[str, float] = NOTHING
    unlabelled: Mapping[str, float] = NOTHING
    positives: Mapping[str, tuple[int, ...]] = MappingProxyType({})


class DataSet(NamedTuple):
    """photographs: below a root; labels: of a folder or file, for class names in an order."""

    photographs: Callable[[str], list[Photograph]]
    labels: Callable[[str, list[str], Difficult], Labels]
    published: Published


def _all_easy(labels: Callable[[str, list[str]], Labels]) -> Callable[..., Labels]:
    """Labels of a data set that knows no object as difficult to see."""
    return lambda path, classes, difficult: labels(path, classes)


VOC_CLASSES, NUSWIDE_CLASSES = "7d877f185c807bc5", "454b648677332111"
DATA_SETS = {
    "voc2007": DataSet(
        partial(voc.photographs, year="2007"),
        partial(voc.labels, year="2007"),
        Published(
            {"train": 5011, "test": 4952}, VOC_CLASSES, {"train": 1.4580, "test": 1.4162}
        ),
    ),
    "voc2012": DataSet(
        partial(voc.photographs, year="2012"),
        partial(voc.labels, year="2012"),
        Published(
            {"train": 5717, "test": 5823},
            VOC_CLASSES,
            {"train": 1.4572, "test": 1.4341},
            positives={
                "train": (
                    327, 268, 395, 260, 365, 213, 590, 539, 566, 151,
                    269, 632, 237, 265, 1994, 269, 171, 257, 273, 290,
                )
            },
        ),
    ),
    "coco2014": DataSet(
        coco.photographs,
        _all_easy(coco.labels),
        Published(
            {"train": 82081, "test": 40137},
            "d7654b2610157284",
            {"train": 2.9366, "test": 2.9049},
        ),
    ),
    "nuswide": DataSet(
        nuswide.photographs,
        _all_easy(nuswide.labels),
        Published({"train": 161789, "test": 107859}, NUSWIDE_CLASSES),
    ),
    "nuswide_spml": DataSet(
        nuswide.recrawled_photographs,
        _all_easy(nuswide.recrawled_labels),
        Published(
            {"train": 150000, "test": 60260},
            NUSWIDE_CLASSES,
            {"test": 1.8821},
            {"train": 33410, "test": 13412},
        ),
    ),
}  # fmt: skip


def odd_images(kind: str, images: Mapping[str, int]) -> list[str]:
    """How the number of images of each split differs from what is published, in words."""
    if kind not in DATA_SETS:
        return []
    return [
        f"{kind} {split} has {images[split]} images, the published split {expected}"
        for split, expected in DATA_SETS[kind].published.images.items()
        if images[split] != expected
    ]


def odd_classes(kind: str, classes: list[str]) -> list[str]:
    """Whether the class names are other than published, or in another order, in words."""
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()
    if kind not in DATA_SETS or digest.startswith(DATA_SETS[kind].published.order):
        return []
    return [f"the {len(classes)} classes are not those of {kind} in their published order"]


def odd_labels(kind: str, split: str, classes: list[str], values: np.ndarray) -> list[str]:
    """How the labels (images, classes) of a split differ from what is published, in words."""
    odd: list[str] = []
    if kind not in DATA_SETS:
        return odd
    published = DATA_SETS[kind].published
    expected = published.labels_per_image.get(split)
    mean = float(np.nansum(values) / max(len(values), 1))
    if expected is not None and round(mean, 4) != expected:
        odd.append(f"{kind} {split} has {mean:.4f} labels an image, published are {expected:.4f}")
    without = published.unlabelled.get(split)
    empty = int((np.nansum(values, axis=1) == 0).sum())
    if without is not None and empty != without:
        odd.append(f"{kind} {split} has {empty} images without a label, published are {without}")
    positives = published.positives.get(split)
    if positives is not None and len(classes) == len(positives):
        counts = np.nansum(values, axis=0).astype(int)
        differing = [c for c, n in enumerate(positives) if counts[c] != n]
        if differing:
            c = differing[0]
            odd.append(
                f"{kind} {split} has {counts[c]} images of {classes[c]}, published are "
                f"{positives[c]} (and {len(differing) - 1} other classes differ)"
            )
    return odd
