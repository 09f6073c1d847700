"""Stage `ground_truth`: what is known to be on the images, for evaluation alone.

Reads the user's labels, if there are any, the class names and the index. Writes
`data/ground_truth.parquet`, with rows for labelled images only; empty where there are no labels.
A stage of its own, so that no path leads from a label to training.

    python -m stages.ground_truth
"""

from __future__ import annotations

from stages.artifacts import GROUND_TRUTH, INDEX, index_digest, read_table, write_table
from stages.errors import UserError
from stages.job import Job, main
from stages.params import Params
from stages.progress import say
from stages.sources.folder import class_names, labels


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    classes = class_names(params.source.classes)
    known = labels(params.source.labels, classes)
    strangers = ~known["image_id"].isin(index["image_id"])
    if len(known) and strangers.all():
        raise UserError(
            f"{params.source.labels}: no image_id is in the index. "
            f"There it is {known['image_id'].iloc[0]!r}, here {index['image_id'].iloc[0]!r}"
        )
    if strangers.any():
        say(f"ground_truth: {strangers.sum()} labelled images are not in the index, and left out")
    ordered = known.set_index("image_id").reindex(index["image_id"]).dropna().reset_index()
    write_table(GROUND_TRUTH, ordered, {"index": index_digest(index)}, job.staging)


if __name__ == "__main__":
    main("ground_truth", run)
