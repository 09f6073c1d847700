"""A classifier that `ccd export` wrote, at work: it wants no torch, so that names come at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.runtime.errors import UserError, ours, reason
from stages.runtime.machine import number
from stages.runtime.progress import warn
from stages.runtime.types import Floats
from stages.storage.provenance import file_digest

SUFFIX = ".onnx"
PLACE = Path(".ccd/classifier.onnx")  # of the export that `ccd predict` asks in the student's place
BATCH = 16  # images in one pass: a processor gains nothing beyond
LIGHT = 32 << 20  # bytes of a file up to which full batches have a session of their own
OURS = "classes", "thresholds", "size", "made_of"


class Exported:
    """size: the side of its square views; classes; thresholds (classes,): its own cuts; batch;
    made_of: the digests of what it was made of.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} is not there: `ccd export {path}` writes it")
        # both sessions of a light one are of the same bytes, though another file may take its place
        self.content = path.read_bytes() if path.stat().st_size <= LIGHT else b""
        try:
            session = opened(self.content or str(path))
            notes = session.get_modelmeta().custom_metadata_map
        except ImportError as error:
            raise UserError(
                f"{path}: onnxruntime is missing: `pip install onnxruntime` ({reason(error)})"
            ) from None
        except Exception as error:  # of its own kinds, all of which mean a file that is no model
            if ours(error):
                raise
            raise UserError(f"{path} is damaged, or no ONNX file: {reason(error)[:150]}") from None
        others = f"{path} is not of `ccd export`: its names, cuts or graph are others"
        try:
            classes, thresholds, size, self.made_of = (json.loads(notes[key]) for key in OURS)
            self.classes: tuple[str, ...] = tuple(map(str, classes))
            self.thresholds: Floats = np.array(thresholds, np.float64)
            self.size = int(size)
        except (KeyError, TypeError, ValueError):
            raise UserError(others) from None
        graph = [
            (end.name, end.type, end.shape[1:])
            for end in (*session.get_inputs(), *session.get_outputs())
        ]
        if self.thresholds.shape != (len(self.classes),) or graph != [
            ("images", "tensor(uint8)", [self.size, self.size, 3]),
            ("probabilities", "tensor(float)", [len(self.classes)]),
        ]:
            raise UserError(others)
        self.path, self.session, self.batch = path, session, number("CCD_BATCH", BATCH, least=1)
        self.of_full_batch: Any = None

    def scores(self, views: npt.NDArray[np.uint8]) -> Floats:
        """Calibrated probabilities (n, classes) of views (n, size, size, 3)."""
        session = self.session
        if len(views) == self.batch and self.content:
            self.of_full_batch = self.of_full_batch or opened(self.content, self.batch)
            session = self.of_full_batch
        try:
            (said,) = session.run(["probabilities"], {"images": views})
        except Exception as error:  # of ONNX Runtime's own kinds
            if ours(error):
                raise
            raise UserError(f"{self.path}: ONNX Runtime fails: {reason(error)[:150]}") from None
        probabilities: Floats = said
        return probabilities


def opened(model: bytes | str, images: int = 0) -> Any:
    """ONNX Runtime's session of a file, or of its content, for so many images.

    0: for any number, which a light network pays for with up to half as much time again.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 4  # what is wrong is said by who asks
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isdecimal() else 0
    # threads that wait would keep those that decode from their cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if images:
        options.add_free_dimension_override_by_name("n", images)
    return InferenceSession(model, options, providers=["CPUExecutionProvider"])


def made_of(weights: Path, thresholds: Path | None) -> dict[str, str]:
    """The digests by which an export knows its classifier again; no cuts have none."""
    files = {"student": weights, "note": weights.with_suffix(".json"), "cuts": thresholds}
    return {what: "" if path is None else file_digest(path) for what, path in files.items()}


def export_of(weights: Path, thresholds: Path | None) -> Exported | None:
    """What `ccd export` left for `ccd predict`, if it is of just these and says the same; or None.

    A student that computes in half precision says something else than its export, by thousandths.
    """
    note = json.loads(weights.with_suffix(".json").read_bytes())
    if not PLACE.is_file() or note.get("precision") != "float32":
        return None
    try:
        found = Exported(PLACE)
    except UserError as error:
        warn(f"ccd: {error}; torch is asked instead")
        return None
    if found.made_of != made_of(weights, thresholds):
        warn(f"ccd: {PLACE} is of another classifier and not used: `ccd export` writes it anew")
        return None
    return found


def notes_beside(place: Path) -> Path:
    """The file with an export's notes, for engines that do not give them out."""
    return place.with_name(f"{place.name}.json")
