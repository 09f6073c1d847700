"""What people answered about images: the files that come back from `ccd review`.

Each reader returns `image_id` and a column a class: 1, 0, or NaN where nobody looked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.runtime.errors import UserError, reason
from stages.runtime.params import NONE
from stages.runtime.progress import say
from stages.sources import label_table
from stages.sources.coco import read_annotations

NOT_ANSWERED = {"description": "of `ccd review`: predictions, not answers"}  # in COCO's form
KEY = "source.answers"
SUFFIXES = (".csv", ".json", ".parquet")
FORMULA = "./"  # in front of an id that a spreadsheet would take for more; the same path


def answers(path: str, classes: list[str]) -> pd.DataFrame:
    """The answers in a file, or in all of a folder, of the images of which a class was looked at.

    .csv: `image_id` and a column a class, 1 or 0, empty where nobody looked; other columns are left
    out. .json: an export of Label Studio's, or COCO's form; .parquet: of Hugging Face's `datasets`.
    There an image was looked at as a whole. Of two files that answer the same the last by its name
    counts. None for `data/none`. Raises `UserError` for a file of another form, or of other
    classes.
    """
    known = label_table.table([], np.zeros((0, len(classes))), classes)
    files = [] if path == NONE else [path]
    if files and Path(path).is_dir():
        inside = [f for f in sorted(Path(path).iterdir()) if not f.name.startswith(".")]
        files = [str(file) for file in inside if file.suffix.lower() in SUFFIXES]
        if others := [file.name for file in inside if str(file) not in files]:
            say(f"answers: warning: passed over in {path}: {', '.join(others[:5])}")
    for file in files:
        own = label_table.without_duplicates(of_file(file, classes), file).set_index("image_id")
        known = own.combine_first(known.set_index("image_id")).reset_index()
    return known.loc[known[classes].notna().any(axis=1), ["image_id", *classes]]


def of_file(path: str, classes: list[str]) -> pd.DataFrame:
    """The answers in one file."""
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        known = label_table.from_csv(path, classes, KEY)
        known["image_id"] = known["image_id"].str.removeprefix(FORMULA)
        return known
    if suffix == ".parquet":
        return of_hugging_face(path, classes)
    if suffix != ".json":
        raise UserError(f"{KEY} in params.yaml: {path} does not end in {', '.join(SUFFIXES)}")
    content = read_json(path)
    if isinstance(content, list):
        return of_label_studio(content, path, classes)
    annotations = read_annotations(Path(path), KEY)
    if content.get("info") == NOT_ANSWERED or any("score" in a for a in content["annotations"]):
        raise UserError(
            f"{KEY} in params.yaml: {path} has predictions, at which nobody looked: export it "
            "from the tool in which it was looked through"
        )
    ids = [image["id"] for image in annotations.images]
    names = [str(image["file_name"]) for image in annotations.images]
    return label_table.table(names, annotations.labels(ids, classes), classes)


def read_json(path: str) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError:
        raise UserError(f"{KEY} in params.yaml: {path} is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{KEY} in params.yaml: {path} cannot be read: {reason(error)}") from None


def of_label_studio(tasks: list[Any], path: str, classes: list[str]) -> pd.DataFrame:
    """What the last annotation of each task chose is there, all else not.

    One that was cancelled does not count; a task without any was not looked at.
    """
    ids, values = [], []
    for number, task in enumerate(tasks, 1):
        try:
            image_id = str(task["data"]["image_id"])
            given = [a for a in task.get("annotations", []) if not a.get("was_cancelled")]
            if not given:
                continue
            results = [r["value"]["choices"] for r in given[-1]["result"] if r["type"] == "choices"]
            chosen = {str(name) for names in results for name in names}
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{KEY} in params.yaml: {path}, task {number} is not as Label Studio's export "
                f"(JSON) has it: {type(error).__name__} {error}"
            ) from None
        if odd := sorted(chosen - set(classes)):
            raise UserError(f"{path}, task {number}: {odd[0]!r} is none of the classes")
        ids.append(image_id)
        values.append([name in chosen for name in classes])
    return label_table.table(ids, np.array(values).reshape(len(ids), len(classes)), classes)


def of_hugging_face(path: str, classes: list[str]) -> pd.DataFrame:
    """The classes in `labels` are there, all others not; where it is null nobody looked."""
    where = f"{KEY} in params.yaml: {path}"
    try:
        schema = pq.read_schema(path)
        for name in ("image_id", "labels"):
            if (times := schema.names.count(name)) != 1:
                has = f"the column {name!r} {times} times" if times else f"no column {name!r}"
                raise UserError(f"{where} has {has}")
        labels = schema.field("labels").type
        kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(is_one(labels) for is_one in kinds) or pa.types.is_nested(labels.value_type):
            raise UserError(f"{where}: `labels` is no list of classes")
        names = names_of(schema)
        known = pq.read_table(path, columns=["image_id", "labels"])
    except (OSError, pa.ArrowException, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{where} cannot be read: {reason(error)}") from None
    ids, values = [], []
    for image_id, given in zip(*known.to_pydict().values(), strict=True):
        if given is None:
            continue
        chosen = {names.get(one, one) for one in given}
        if odd := sorted(str(one) for one in chosen if one not in classes):
            raise UserError(f"{path}, {image_id}: {odd[0]!r} is none of the classes")
        ids.append(str(image_id))
        values.append([name in chosen for name in classes])
    return label_table.table(ids, np.array(values).reshape(len(ids), len(classes)), classes)


def names_of(schema: pa.Schema) -> dict[int, str]:
    """The class names that the numbers in `labels` stand for, as `datasets` notes them."""
    note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    labels = note.get("info", {}).get("features", {}).get("labels", {})
    return dict(enumerate(labels.get("feature", {}).get("names", [])))
