"""Stage `ground_truth`: what is known to be on the images, for evaluation alone.

Reads the user's labels, if there are any, or a data set's, the class names and the index. Writes
`data/ground_truth.parquet`, with rows for labelled images only; empty where there are no labels.
A stage of its own, so that no path leads from a label to training. NaN stands for a pair of image
and class that is not judged.

    python -m stages.ground_truth
"""

from __future__ import annotations

import pandas as pd

from stages.artifacts import GROUND_TRUTH
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
    known = label_table.in_order(known, index, source.labels, "ground_truth")
    if len(known) and source.kind != "folder":
        split = index.set_index("image_id")["split"].loc[known["image_id"]].to_numpy()
        values = {name: known.loc[split == name, classes] for name in ("train", "test")}
        for odd in differences(source.kind, values, source.difficult):
            say(f"ground_truth: warning: {odd}")
    types = dict.fromkeys(classes, "float32")
    ordered = (known.iloc[part].astype(types) for part in parts_of(len(known)))
    write_table(GROUND_TRUTH, ordered, {"index": digest}, job.staging)


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
