"""The trained student at work on new images, alone: no CLIP, no index, no DVC.

Torch takes seconds to import, and scipy a part of one, so that what is wrong with a command is said
before. An exported classifier is asked without either, and answers faster on a processor.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from stages.artifacts import STUDENT, THRESHOLDS
from stages.command.exported import SUFFIX, Exported, export_of
from stages.images.decode import SUFFIXES, BadImage, decode_in_turn, read_regular
from stages.runtime import machine
from stages.runtime.errors import UserError
from stages.runtime.progress import meter, warn
from stages.runtime.types import Floats
from stages.sources.folder import REMEDY, in_words, photographs
from stages.sources.photograph import Photograph, printable
from stages.storage.provenance import file_digest
from stages.storage.tables import read_table

if TYPE_CHECKING:
    from stages.method.cuts import Cuts

Pixels = npt.NDArray[np.uint8]

STATED = ("image", "status", "error")  # of every image, before its probabilities
AHEAD = 2  # batches of images that are decoded before they are looked at
MAX_PIXELS = 100_000_000  # as `source.max_pixels` is by default
DETAIL = 2  # as that of `stages.images.crops`, which imports torch


class Classifier(Protocol):
    """What `predict` asks. size: side of its square views; batch: views in one pass."""

    path: Path
    size: int
    batch: int
    classes: tuple[str, ...]

    def scores(self, views: Pixels) -> Floats:
        """Probabilities (n, classes) of views (n, size, size, 3)."""


class Trained:
    """A trained student of the pipeline's, with torch."""

    def __init__(self, weights: Path) -> None:
        from stages.models.device import device
        from stages.models.student import Student

        self.path, self.student = weights, Student.load(weights, device())
        self.size, self.classes = self.student.config.size, self.student.config.classes
        self.batch = self.student.batch_size(self.size)

    def scores(self, views: Pixels) -> Floats:
        """Probabilities (n, classes) of views (n, size, size, 3)."""
        import torch

        seen = torch.from_numpy(views).permute(0, 3, 1, 2)  # channels last, as they were decoded
        said: Floats = self.student.scores(seen).cpu().numpy()
        return said


def images_in(paths: Iterable[Path]) -> list[Photograph]:
    """The image files that `paths` name: files as they are, folders with all below them."""
    photos = []
    for path in paths:
        if path.is_dir():
            below, others = photographs(str(path), "", key="PATHS")
            if others:
                warn(f"ccd predict: passed over in {path}: {in_words(others)}")
            named_so = (printable(os.fsencode(photo.path)) for photo in below)
            photos += [p._replace(image_id=n) for p, n in zip(below, named_so, strict=True)]
        elif path.exists():
            photos.append(Photograph(printable(os.fsencode(path)), str(path), "", ""))
        else:
            raise UserError(f"{printable(os.fsencode(path))} is not there")
    return photos


def weights_in(student: Path) -> Path:
    """A classifier's weights: the file, or the one in a folder of them."""
    return student / STUDENT.name if student.is_dir() else student


def must_be_a_student(weights: Path) -> None:
    """Raise `UserError` unless a student's weights and what says so seem to lie there."""
    beside = weights.with_suffix(".json") if weights.name else weights
    for path in (beside, weights):
        if not path.is_file():
            raise UserError(
                f"{path} is not there: run `dvc repro` first, or name a student's weights with "
                "--student; their .json lies beside them"
            )
    try:
        note = json.loads(beside.read_bytes())
    except ValueError:
        raise UserError(f"{beside} is damaged (it is no JSON): copy both files again") from None
    if not isinstance(note, dict) or "classes" not in note:
        raise UserError(f"{weights} is no trained student: its .json names no `classes`")


def thresholds_for(weights: Path) -> Path | None:
    """The file of a classifier's own cuts, beside it or in the stage's place, or None."""
    for path in (weights.with_name(THRESHOLDS.path.name), THRESHOLDS.path):
        if path.exists():
            _, note = read_table(replace(THRESHOLDS, path=path))
            if note["student"] == file_digest(weights):
                return path
            warn(f"ccd: {path} is of another classifier and not used")
    warn(f"ccd: no {THRESHOLDS.path.name} for this classifier: cut at 1/2, not calibrated")
    return None


def cuts_for(weights: Path) -> Cuts | None:
    """The cuts that are a classifier's own, or None."""
    thresholds = thresholds_for(weights)
    return None if thresholds is None else cuts_in(thresholds)


def cuts_in(thresholds: Path) -> Cuts:
    """The cuts that a file holds."""
    from stages.method.cuts import Cuts

    table, _ = read_table(replace(THRESHOLDS, path=thresholds))
    return Cuts(**{name: table[name].to_numpy() for name in Cuts._fields})


def predict(
    images: list[Photograph],
    weights: Path,
    max_pixels: int = MAX_PIXELS,
    cuts: Cuts | None = None,
) -> pd.DataFrame:
    """One row an image: `image`, `status`, `error`, and a probability for each class.

    weights: of a trained student. They are calibrated by `cuts`, or as the student says them. An
    image that cannot be used has a status other than ok, the reason, and no probabilities.
    """
    table = said_by(Trained(weights), images, max_pixels)
    if cuts is not None:
        from stages.method.cuts import calibrated

        columns = table.columns[len(STATED) :]
        said = table[columns].to_numpy(np.float32)
        table[columns] = calibrated(said, cuts.scale, cuts.offset).astype(np.float32)
    return table


def predict_with_cuts(
    images: list[Photograph], weights: Path, max_pixels: int, calibrate: bool
) -> tuple[pd.DataFrame, float | Floats]:
    """What `predict` says, by the classifier's own calibration if wanted, and its own cuts.

    weights: of a trained student, or their folder, or what `ccd export` wrote, which has both
    inside. What it left of the pipeline's own student is asked instead, where there is no GPU.
    """
    weights = weights_in(weights)
    if weights.suffix.lower() == SUFFIX:
        if not calibrate:
            raise UserError(f"{weights} has its calibration inside: leave --no-calibrate out")
        exported: Exported | None = Exported(weights)
    else:
        must_be_a_student(weights)
        thresholds = thresholds_for(weights) if calibrate else None
        replaced = weights == STUDENT and calibrate and machine.is_without_gpu()
        exported = export_of(weights, thresholds) if replaced else None
    if exported is not None:
        return said_by(exported, images, max_pixels), exported.thresholds
    cuts = None if thresholds is None else cuts_in(thresholds)
    return predict(images, weights, max_pixels, cuts), 0.5 if cuts is None else cuts.threshold


def said_by(classifier: Classifier, images: list[Photograph], max_pixels: int) -> pd.DataFrame:
    """One row an image, as `predict`: what the classifier says by itself."""
    size, classes = classifier.size, classifier.classes
    if "labels" in classes:
        raise UserError(
            f"{classifier.path}: a column is called `labels`, so that no class can be here"
        )
    probabilities = np.full((len(images), len(classes)), np.nan, np.float32)
    states = [("ok", "")] * len(images)
    every = range(len(images))
    batches = [every[start : start + classifier.batch] for start in every[:: classifier.batch]]
    read = partial(read_view, size=size, max_pixels=max_pixels)
    pool = ThreadPoolExecutor(max(1, machine.workers()))
    waiting: list[list[Future[Pixels]]] = []
    try:
        with meter("predict", "images", len(images)) as progress:
            for number, rows in enumerate(batches):
                waiting += [
                    [pool.submit(read, images[row]) for row in more]
                    for more in batches[number + len(waiting) : number + AHEAD]
                ]
                views = {}
                for row, view in zip(rows, waiting.pop(0), strict=True):
                    try:
                        views[row] = view.result()
                    except BadImage as bad:
                        states[row] = (bad.status, f"{bad}{remedy_for(images[row])}")
                if views:
                    probabilities[list(views)] = classifier.scores(np.stack([*views.values()]))
                progress.advance(len(rows), failed=len(rows) - len(views))
    finally:  # where it was stopped, nothing is waited for
        pool.shutdown(wait=False, cancel_futures=True)
    table = pd.DataFrame(states, columns=list(STATED[1:]))
    table.insert(0, "image", [photo.image_id for photo in images])
    return pd.concat([table, pd.DataFrame(probabilities, columns=list(classes))], axis=1)


def remedy_for(photo: Photograph) -> str:
    """What lets a file be read whose kind nothing here reads, or nothing."""
    suffix = Path(photo.path).suffix.lower()
    return "" if suffix in SUFFIXES else REMEDY.get(suffix, "")


def read_view(photo: Photograph, size: int, max_pixels: int) -> Pixels:
    """The whole image squashed to a square, (size, size, 3); raises `BadImage`."""
    if photo.error:
        raise BadImage("bad_name", photo.error)
    try:
        content = read_regular(Path(photo.path))
    except OSError as error:
        raise BadImage("unreadable", error.strerror or str(error)) from None
    image = decode_in_turn(content, max_pixels, enough=DETAIL * size)
    return np.array(image.resize((size, size), Image.Resampling.BILINEAR))


def named(table: pd.DataFrame, threshold: float | Floats, top: int = 0) -> list[list[str]]:
    """What to call each image of `predict`: its classes of at least that probability, the likeliest
    first; of `top` above 0 that many of the likeliest, whatever their probability.

    threshold: one for all classes, or (classes,). Of an image that could not be used it is nothing.
    """
    p = table.iloc[:, len(STATED) :].to_numpy()
    classes = table.columns[len(STATED) :]
    order = np.argsort(-p, axis=1, kind="stable")[:, : top or None]
    usable = (table["status"] == "ok").to_numpy()
    above = p >= threshold
    return [
        [str(classes[c]) for c in row if usable[n] and (top or above[n, c])]
        for n, row in enumerate(order)
    ]
