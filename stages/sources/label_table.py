"""Labels of a user's own photographs, in one of three forms, for evaluation alone.

Each reader returns `image_id` and a numeric column for each class, in the order of the class list.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pandas as pd

from stages.runtime.errors import UserError
from stages.runtime.params import NONE
from stages.runtime.progress import say
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
        return from_csv(path, classes, KEY)
    if suffix == ".txt":
        return _from_lines(path, classes)
    if suffix == ".json":
        annotations = read_annotations(Path(path), KEY)
        rows = [str(image["file_name"]) for image in annotations.images]
        known = annotations.labels([image["id"] for image in annotations.images], classes)
        return without_duplicates(table(rows, known, classes), path)
    raise UserError(f"{KEY} in params.yaml: {path} ends neither in .csv nor in .txt nor in .json")


def in_order(known: pd.DataFrame, index: pd.DataFrame, path: str, stage: str) -> pd.DataFrame:
    """The rows of labels whose images are in the index, in its order.

    path: of their file, and stage: who says how many are not. Raises `UserError` if none is.
    """
    place = pd.Index(index["image_id"]).get_indexer(pd.Index(known["image_id"]))
    strangers = int((place < 0).sum())
    spelt = otherwise_spelt(known["image_id"][place < 0], index["image_id"])
    hint = ""
    if spelt is not None:
        hint = (
            f"{spelt!r} differs from an image's id only in how accents are written (Unicode's NFC "
            "or NFD): write them as the files have them"
        )
    if len(known) and strangers == len(known):
        there, here = known["image_id"].iloc[0], index["image_id"].iloc[0]
        hint = hint or f"There it is {there!r}, here {here!r}"
        raise UserError(f"{path}: no image_id is in the index. {hint}")
    if strangers:
        say(f"{stage}: {strangers} labelled images are not in the index, and left out")
        if hint:
            say(f"{stage}: warning: {hint}")
    return known.iloc[np.argsort(place, kind="stable")[strangers:]]


def otherwise_spelt(strangers: pd.Series, known: pd.Series) -> str | None:
    """One of the `strangers` that is among the `known` ids, but for Unicode's composition."""
    composed = set(known.map(partial(normalize, "NFC")))
    return next((name for name in strangers if normalize("NFC", name) in composed), None)


def table(ids: list[str], values: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """`image_id` and a float32 column a class, from `values` (images, classes)."""
    columns = pd.DataFrame(values.astype(np.float32), columns=pd.Index(classes, dtype=object))
    return pd.concat([pd.DataFrame({"image_id": pd.Series(ids, dtype=str)}), columns], axis=1)


def from_csv(path: str, classes: list[str], key: str) -> pd.DataFrame:
    """The labels of a CSV; `key` is the parameter that led to it."""
    columns = columns_of(path, f"{key} in params.yaml", ["image_id", *classes])
    missing = [name for name in ["image_id", *classes] if name not in columns]
    if missing:
        raise UserError(
            f"{path} has no column {missing[0]!r} ({key} in params.yaml); its columns are: "
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
        rows = rows[(rows["image_id"] != "") | rows[classes].notna().any(axis=1)]  # blank lines
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{key} in params.yaml: {path}: {error}") from None
    return without_duplicates(rows, path)


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
    return without_duplicates(table(ids, values, classes), path)


def without_duplicates(rows: pd.DataFrame, path: str) -> pd.DataFrame:
    twice = rows["image_id"][rows["image_id"].duplicated()]
    if len(twice):
        row = f", row {twice.index[0] + 2}" if path.endswith(".csv") else ""
        raise UserError(f"{path}{row}: the image {twice.iloc[0]!r} comes twice")
    return rows
