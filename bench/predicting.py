"""Row j: `ccd predict` on files, beside its bare student on pictures in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bench.made_up import config_of_student, write_photos
from bench.speed import Row, Timed, compare
from stages.command import predict
from stages.command.export import export
from stages.command.exported import Exported
from stages.models.student import build_student
from stages.models.weights import save_weights
from stages.sources.photograph import Photograph

STUDENTS = {"timm/tf_efficientnet_lite0": (192, 512), "resnet101": (448, 32)}  # side, photographs


def compare_predictions(folder: Path, rounds: int) -> Iterator[Row]:
    """Both ways to ask a student, beside the bare one by torch; the export beside itself too."""
    for arch, (side, count) in STUDENTS.items():
        found = write_photos(folder / arch, count)
        photos = [Photograph(Path(path).name, path, "", "") for path in found["path"].tolist()]
        weights = folder / f"{arch}.safetensors"
        config = config_of_student(arch, side, "float32")
        save_weights(weights, build_student(config).state_dict(), config)
        trained = predict.Trained(weights)
        deployed = weights.with_suffix(".onnx")
        deployed.write_bytes(export(weights, thresholds=None)[0])
        exported = Exported(deployed)
        views = [predict.read_view(photo, side, predict.MAX_PIXELS) for photo in photos]
        name = f"j: predict by {{}}, {arch.removeprefix('timm/')} at {side}, ÷ bare {{}}"
        pairs = (
            ("torch", trained, trained),
            ("export", exported, trained),
            ("export", exported, exported),
        )
        for own, asked, beside in pairs:
            bare = "export" if beside is exported else "student"
            yield compare(
                name.format(own, bare),
                on_files(asked, photos),
                in_memory(beside, views),
                rounds,
                "cpu",
            )


def on_files(classifier: predict.Classifier, photos: list[Photograph]) -> Timed:
    """All that `predict` does, but for loading the classifier."""

    def work() -> float:
        table = predict.said_by(classifier, photos, predict.MAX_PIXELS)
        assert (table["status"] == "ok").all()
        return len(photos)

    return work


def in_memory(classifier: predict.Classifier, views: list[predict.Pixels]) -> Timed:
    """The network alone, in the same batches."""
    starts = range(0, len(views), classifier.batch)
    batches = [np.stack(views[start : start + classifier.batch]) for start in starts]

    def work() -> float:
        for batch in batches:
            classifier.scores(batch)
        return len(views)

    return work
