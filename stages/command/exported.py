"""A classifier that `ccd export` wrote, at work: it wants no torch, so that names come at once."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.runtime.errors import UserError, ours
from stages.runtime.progress import warn
from stages.runtime.types import Floats
from stages.storage.provenance import file_digest

SUFFIX = ".onnx"
PLACE = Path("data/classifier.onnx")  # beside the student's folder, which is DVC's
BATCH = 16  # images in one pass: a processor gains nothing beyond
LIGHT = 32 << 20  # bytes of a file up to which full batches have a session of their own
OURS = "classes", "thresholds", "size"


def made_of(weights: Path, thresholds: Path | None) -> dict[str, str]:
    """The digests by which an export knows its classifier again; no cuts have none."""
    cuts = "" if thresholds is None else file_digest(thresholds)
    return {"student": file_digest(weights), "cuts": cuts}


def export_of(weights: Path, thresholds: Path | None) -> Path | None:
    """What `ccd export` left for `ccd predict`, if it is of just these and can be run; or None."""
    if not PLACE.is_file() or find_spec("onnxruntime") is None:
        return None
    try:
        note = json.loads(notes_beside(PLACE).read_bytes())
        same = note["made_of"] == made_of(weights, thresholds)
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        warn(f"ccd: {PLACE} is of another classifier and not used: `ccd export` writes it anew")
    return PLACE if same else None


def notes_beside(place: Path) -> Path:
    """The file with an export's notes, for engines that do not give them out."""
    return place.with_name(f"{place.name}.json")


def session_of(path: Path, images: int = 0) -> Any:
    """ONNX Runtime's session for so many images; 0: for any number, which a light network pays for
    with up to half as much time again.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong is said by who asks
    # threads that wait would keep those that decode from their cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if images:
        options.add_free_dimension_override_by_name("n", images)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Exported:
    """size: the side of its square views; classes; thresholds (classes,): its own cuts; batch."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} is not there: `ccd export {path}` writes it")
        if find_spec("onnxruntime") is None:
            raise UserError(f"{path}: onnxruntime is missing: `pip install onnxruntime`")
        try:
            session = session_of(path)
            notes = session.get_modelmeta().custom_metadata_map
        except Exception as error:  # of its own kinds, all of which mean a file that is no model
            if ours(error):
                raise
            text = " ".join(str(error).split())[:150]
            raise UserError(f"{path} is damaged, or no ONNX file: {text}") from None
        others = f"{path} is not of `ccd export`: its names, cuts or graph are others"
        try:
            classes, thresholds, size = (json.loads(notes[key]) for key in OURS)
            self.classes: tuple[str, ...] = tuple(map(str, classes))
            self.thresholds: Floats = np.array(thresholds, np.float64)
            self.path, self.session, self.size, self.batch = path, session, int(size), BATCH
        except (KeyError, TypeError, ValueError):
            raise UserError(others) from None
        self.of_full_batch: Any = None
        graph = [
            (end.name, end.type, end.shape[1:])
            for end in (*session.get_inputs(), *session.get_outputs())
        ]
        if self.thresholds.shape != (len(self.classes),) or graph != [
            ("images", "tensor(uint8)", [self.size, self.size, 3]),
            ("probabilities", "tensor(float)", [len(self.classes)]),
        ]:
            raise UserError(others)

    def scores(self, views: npt.NDArray[np.uint8]) -> Floats:
        """Calibrated probabilities (n, classes) of views (n, size, size, 3)."""
        session = self.session
        if len(views) == self.batch and self.path.stat().st_size <= LIGHT:
            self.of_full_batch = self.of_full_batch or session_of(self.path, self.batch)
            session = self.of_full_batch
        (said,) = session.run(["probabilities"], {"images": views})
        probabilities: Floats = said
        return probabilities
