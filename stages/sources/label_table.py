"""Labels of a user's own photographs, in one of three forms, for evaluation alone.

Each reader returns `image_id` and a numeric column for each class, in the order of the class list.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from stages.runtime.errors import UserError
from stages.runtime.params import NONE
from stages.sources.coco import read_annotations
from stages.sources.photograph import columns_of, lines_of

KEY = "source.labels"
PART = 4096  # rows of a CSV that are read at a time


def labels(path: str, classes: list[str]) -> pd.DataFrame:
    """The labels in `path`, by its suffix; no rows for `data/none`.

    .csv: `image_id` and a 0/1 column a class, NaN where a cell is empty: not judged. .txt: lines of
    `image_id class class …`, a class by its name or by its number in the class list, from 0. .json:
    COCO's form, an image's id being its `file_name`; an image without an annotation shows none of
    the classes.
    """
    if path == NONE:
        return table([], np.zeros((0, len(classes))), classes)
    suffix = Path(path).suffix.lower()
    if suffix == ".csv":
        return _from_csv(path, classes)
    if suffix == ".txt":
        return _from_lines(path, classes)
    if suffix == ".json":
        annotations = read_annotations(Path(path), KEY)
        rows = [str(image["file_name"]) for image in annotations.images]
        known = annotations.labels([image["id"] for image in annotations.images], classes)
        return _without_duplicates(table(rows, known, classes), path)
    raise UserError(f"{KEY} in params.yaml: {path} ends neither in .csv nor in .txt nor in .json")


def table(ids: list[str], values: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """`image_id` and a float32 column a class, from `values` (images, classes)."""
    columns = pd.DataFrame(values.astype(np.float32), columns=pd.Index(classes, dtype=object))
    return pd.concat([pd.DataFrame({"image_id": pd.Series(ids, dtype=str)}), columns], axis=1)


def _from_csv(path: str, classes: list[str]) -> pd.DataFrame:
    columns = columns_of(path, f"{KEY} in params.yaml", ["image_id", *classes])
    missing = [name for name in ["image_id", *classes] if name not in columns]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} ({KEY} in params.yaml); its columns are: "
            f"{', '.join(columns)[:200]}"
        )
    try:
        _check_lengths(path, len(columns))
        parts = pd.read_csv(
            path,
            dtype=str,
            usecols=["image_id", *classes],
            keep_default_na=False,
            index_col=False,
            chunksize=PART,
        )
        rows = pd.concat([_checked(part, path, classes) for part in parts])
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{KEY} in params.yaml: {path}: {error}") from None
    return _without_duplicates(rows, path)


def _check_lengths(path: str, columns: int) -> None:
    """Raise `UserError` for a row with more cells, or with less: it was cut off."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file)
        for row in lines:
            if row and len(row) != columns:
                raise UserError(
                    f"{path}, line {lines.line_num}: the row {row[0]!r} has {len(row)} cells, the "
                    f"header has {columns}"
                )


def _checked(rows: pd.DataFrame, path: str, classes: list[str]) -> pd.DataFrame:
    """Some rows of a CSV, as labels."""
    known: dict[str, pd.Series] = {}
    for name in classes:
        values = rows[name].str.strip()
        known[name] = pd.to_numeric(values.where(values != ""), errors="coerce").astype("float32")
        wrong = rows.index[(values != "") & ~known[name].isin([0, 1])]
        if len(wrong):
            raise UserError(
                f"{path}, row {wrong[0] + 2}: {name} is {values[wrong[0]]!r}, neither 0 nor 1, nor "
                "empty where it is not known"
            )
    return rows[["image_id"]].assign(**known)


def _from_lines(path: str, classes: list[str]) -> pd.DataFrame:
    lines = lines_of(Path(path), KEY)
    number = {str(position): position for position in range(len(classes))}
    number |= {name: position for position, name in enumerate(classes)}
    ids, values = [], np.zeros((len(lines), len(classes)), np.float32)
    for row, line in enumerate(lines):
        image_id, *named = line.split()
        ids.append(image_id)
        for name in named:
            if name not in number:
                raise UserError(
                    f"{path}: {line[:80]!r}: {name!r} is neither a class without a blank in its "
                    f"name nor a number from 0 to {len(classes) - 1}; a CSV takes any name"
                )
            values[row, number[name]] = 1
    return _without_duplicates(table(ids, values, classes), path)


def _without_duplicates(rows: pd.DataFrame, path: str) -> pd.DataFrame:
    twice = rows["image_id"][rows["image_id"].duplicated()]
    if len(twice):
        row = f", row {twice.index[0] + 2}" if path.endswith(".csv") else ""
        raise UserError(f"{path}{row}: the image {twice.iloc[0]!r} comes twice")
    return rows
