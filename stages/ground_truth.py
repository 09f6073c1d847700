"""Stage `ground_truth`: what is known to be on the images, for evaluation alone.

Reads the user's labels, if there are any, or a data set's, the class names and the index. Writes
`data/ground_truth.parquet`, with rows for labelled images only; empty where there are no labels.
A stage of its own, so that no path leads from a label to training. NaN stands for a pair of image
and class that is not judged.

    python -m stages.ground_truth
"""

from __future__ import annotations

from functools import partial
from unicodedata import normalize

import numpy as np
import pandas as pd

from stages.artifacts import GROUND_TRUTH
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import NONE, Params
from stages.runtime.progress import say
from stages.sources import label_table
from stages.sources.catalogue import DATA_SETS, odd_classes, odd_labels
from stages.sources.class_list import class_list
from stages.sources.voc import Difficult
from stages.storage.index import ID_COLUMNS, read_index
from stages.storage.provenance import parts_of
from stages.storage.tables import write_table


def run(params: Params, job: Job) -> None:
    index, digest = read_index(ID_COLUMNS)
    source = params.source
    classes = list(class_list(source.classes))
    known = labels(source.kind, source.labels, classes, source.difficult)
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
        raise UserError(f"{source.labels}: no image_id is in the index. {hint}")
    if strangers:
        say(f"ground_truth: {strangers} labelled images are not in the index, and left out")
        if hint:
            say(f"ground_truth: warning: {hint}")
    row = np.argsort(place, kind="stable")[strangers:]  # in the index's order
    if len(row) and source.kind != "folder":
        split = index["split"].to_numpy()[place[row]]
        values = {name: known[classes].iloc[row[split == name]] for name in ("train", "test")}
        for odd in differences(source.kind, values, source.difficult):
            say(f"ground_truth: warning: {odd}")
    types = dict.fromkeys(classes, "float32")
    ordered = (known.iloc[row[part]].astype(types) for part in parts_of(len(row)))
    write_table(GROUND_TRUTH, ordered, {"index": digest}, job.staging)


def otherwise_spelt(strangers: pd.Series, known: pd.Series) -> str | None:
    """One of the `strangers` that is among the `known` ids, but for Unicode's composition."""
    composed = set(known.map(partial(normalize, "NFC")))
    return next((name for name in strangers if normalize("NFC", name) in composed), None)


def differences(kind: str, known: dict[str, pd.DataFrame], difficult: Difficult) -> list[str]:
    """How a data set's labels differ from what is published of them, in words.

    known: by split, a column a class.
    """
    odd = odd_classes(kind, list(known["train"].columns))
    if difficult == "negative":
        for split, labels_of in known.items():
            odd += odd_labels(kind, split, list(labels_of.columns), labels_of.to_numpy())
    return odd


def labels(kind: str, path: str, classes: list[str], difficult: Difficult) -> pd.DataFrame:
    """`image_id` and a numeric column a class: 0, 1, or NaN; no rows for `data/none`."""
    if kind == "folder" or path == NONE:
        return label_table.labels(path, classes)
    ids, values = DATA_SETS[kind].labels(path, classes, difficult)
    return label_table.table(ids, values, classes)


if __name__ == "__main__":
    main("ground_truth", run)
