"""`ccd again`: another update of the labels (section 3.2), by the classifier of the last run.

Its maps say where to look, in the place of a warmed-up student's, and the training goes on from its
weights.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from stages.artifacts import STUDENT
from stages.command.predict import must_be_a_student
from stages.runtime.errors import UserError
from stages.runtime.params_file import PARAMS_FILE, edit_params, parse_params, read_yaml
from stages.storage.provenance import check_sums, file_digest

ROUNDS = Path("data/rounds")  # copies of the classifiers that a run began with


def again() -> Path:
    """Let the next `dvc repro` begin with the classifier of the last; returns where its copy is.

    `params.yaml` is changed so far as that needs. Raises `UserError`, with nothing changed, where
    there is no classifier, it is the one that the last run began with, or no map is asked.
    """
    params = parse_params(read_yaml(PARAMS_FILE))
    if params.cam_boxes.views != "cam":
        raise UserError(
            f"{PARAMS_FILE}: `cam_boxes.views: {params.cam_boxes.views}` asks no student where to "
            "look, so the views would stay as they are: make it cam"
        )
    must_be_a_student(STUDENT)
    from stages.models.student import StudentConfig
    from stages.models.weights import load_weights

    load_weights(STUDENT, StudentConfig)
    folder = STUDENT.parent
    check_sums(folder, *(file.name for file in folder.iterdir() if file.suffix == ".csv"))
    earlier = [int(place.name) for place in ROUNDS.glob("*") if place.name.isdigit()]
    for number in earlier:
        same = ROUNDS / str(number) / STUDENT.name
        if same.is_file() and file_digest(same) == file_digest(STUDENT):
            raise UserError(
                f"{folder} is the classifier of {same.parent} itself: run `dvc repro` first, so "
                "that there is another"
            )
    place = ROUNDS / str(max(earlier, default=0) + 1)
    copying = place.with_name(f"{place.name}.part")
    shutil.rmtree(copying, ignore_errors=True)
    shutil.copytree(folder, copying, copy_function=shutil.copyfile)
    copying.replace(place)
    edit_params(
        PARAMS_FILE,
        {
            "student.weights": "classifier",
            "student.checkpoint": place.as_posix(),
            "warmup.epochs": 0,
            "warmup.head": "gradient",
        },
    )
    return place
