"""What the published splits hold, to tell a complete data set from one that is not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

# images in the training and in the test split
IMAGES = {
    "voc2007": {"train": 5011, "test": 4952},
    "voc2012": {"train": 5717, "test": 5823},
    "coco2014": {"train": 82081, "test": 40137},
    "nuswide": {"train": 161789, "test": 107859},
    "nuswide_spml": {"train": 150000, "test": 60260},
}
# digest of the class names in their published order, a line each
ORDER = {
    "voc2007": "7d877f185c807bc5",
    "voc2012": "7d877f185c807bc5",
    "coco2014": "d7654b2610157284",
    "nuswide": "454b648677332111",
    "nuswide_spml": "454b648677332111",
}
# labels an image on average, objects that are only difficult to see counted as absent
LABELS_AN_IMAGE = {
    "voc2007": {"train": 1.4580, "test": 1.4162},
    "voc2012": {"train": 1.4572, "test": 1.4341},
    "coco2014": {"train": 2.9366, "test": 2.9049},
    "nuswide_spml": {"test": 1.8821},
}
WITHOUT_A_LABEL = {"nuswide_spml": {"train": 33410, "test": 13412}}
POSITIVES = {
    "voc2012": {
        "train": (
            327, 268, 395, 260, 365, 213, 590, 539, 566, 151,
            269, 632, 237, 265, 1994, 269, 171, 257, 273, 290,
        )
    }
}  # fmt: skip


def odd_images(kind: str, images: Mapping[str, int]) -> list[str]:
    """How the number of images of each split differs from what is published, in words."""
    return [
        f"{kind} {split} has {images[split]} images, the published split {expected}"
        for split, expected in IMAGES.get(kind, {}).items()
        if images[split] != expected
    ]


def odd_classes(kind: str, classes: list[str]) -> list[str]:
    """Whether the class names are other than published, or in another order, in words."""
    if kind not in ORDER:
        return []
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()
    if digest.startswith(ORDER[kind]):
        return []
    return [f"the {len(classes)} classes are not those of {kind} in their published order"]


def odd_labels(kind: str, split: str, classes: list[str], values: np.ndarray) -> list[str]:
    """How the labels (images, classes) of a split differ from what is published, in words."""
    odd = []
    expected = LABELS_AN_IMAGE.get(kind, {}).get(split)
    found = float(np.nansum(values) / max(len(values), 1))
    if expected is not None and round(found, 4) != expected:
        odd.append(f"{kind} {split} has {found:.4f} labels an image, published are {expected:.4f}")
    without = WITHOUT_A_LABEL.get(kind, {}).get(split)
    empty = int((np.nansum(values, axis=1) == 0).sum())
    if without is not None and empty != without:
        odd.append(f"{kind} {split} has {empty} images without a label, published are {without}")
    positives = POSITIVES.get(kind, {}).get(split)
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
