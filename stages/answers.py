"""Stage `answers`: what people said of images that `ccd review` asked about; not of the paper.

Reads their file, if there is one, the class names and the index. Writes `data/answers.parquet`,
with rows only for images that somebody looked at; NaN stands for a class that nobody looked at.

    python -m stages.answers
"""

from __future__ import annotations

from stages.artifacts import ANSWERS
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.sources import answer_table, label_table
from stages.sources.class_list import class_list
from stages.storage.index import ID_COLUMNS, read_index
from stages.storage.tables import write_table


def run(params: Params, job: Job) -> None:
    index, digest = read_index(ID_COLUMNS)
    source = params.source
    classes = list(class_list(source.classes))
    known = answer_table.answers(source.answers, classes)
    known = label_table.in_order(known, index, source.answers, "answers")
    if len(known):
        say(f"answers: {int(known[classes].count().sum())} of {len(known)} images")
    known = known.astype(dict.fromkeys(classes, "float32"))
    write_table(ANSWERS, known, {"index": digest}, job.staging)


if __name__ == "__main__":
    main("answers", run)
