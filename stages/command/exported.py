"""A classifier that `ccd export` wrote, at work: it wants no torch, so that names come at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.runtime.errors import UserError, ours
from stages.runtime.types import Floats

SUFFIX = ".onnx"
BATCH = 16  # images in one pass: a processor gains nothing beyond
OURS = "classes", "thresholds", "size"


class Exported:
    """size: the side of its square views; classes; thresholds (classes,): its own cuts; batch."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path} is not there: `ccd export {path}` writes it")
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"{path}: onnxruntime is missing: `pip install onnxruntime`") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is said here
        try:
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
            notes = session.get_modelmeta().custom_metadata_map
        except Exception as error:  # of its own kinds, all of which mean a file that is no model
            text = " ".join(str(error).split())[:150]
            raise UserError(f"{path} is damaged, or no ONNX file: {text}") from None
        others = f"{path} is not of `ccd export`: its names, cuts or graph are others"
        try:
            classes, thresholds, size = (json.loads(notes[key]) for key in OURS)
            self.classes: tuple[str, ...] = tuple(map(str, classes))
            self.thresholds: Floats = np.array(thresholds, np.float64)
            self.path, self.session, self.size, self.batch = path, session, int(size), BATCH
            nothing = np.zeros((1, self.size, self.size, 3), np.uint8)
        except (KeyError, TypeError, ValueError, MemoryError):
            raise UserError(others) from None
        try:
            said = self.scores(nothing)
        except Exception as error:  # of ONNX Runtime's own kinds
            if ours(error):
                raise
            raise UserError(others) from None
        if not said.shape[1:] == self.thresholds.shape == (len(self.classes),):
            raise UserError(others)

    def scores(self, views: npt.NDArray[np.uint8]) -> Floats:
        """Calibrated probabilities (n, classes) of views (n, size, size, 3)."""
        (said,) = self.session.run(["probabilities"], {"images": views})
        probabilities: Floats = said
        return probabilities
