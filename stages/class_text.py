"""Stage `class_text`: what the class names mean to the teacher (section 3.1).

Reads the class names and the teacher. Writes `data/class_text.zarr`, one unit embedding a class,
the mean over the prompts, and the teacher's own temperature.

    python -m stages.class_text
"""

from __future__ import annotations

import torch

from stages.artifacts import CLASS_TEXT, TEACHER
from stages.models.teacher import Teacher
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.sources.class_list import class_list
from stages.storage.arrays import write_store
from stages.storage.provenance import Provenance


def run(params: Params, job: Job) -> None:
    classes = class_list(params.source.classes)
    teacher = Teacher(TEACHER, "cpu")
    embeddings = []
    for words in classes.values():
        prompts = [template.replace("{}", words) for template in params.class_text.templates]
        for prompt in prompts:
            if teacher.too_long(prompt):
                raise UserError(
                    f"{params.source.classes}: {prompt!r} is longer than the teacher can read"
                )
        embeddings.append(teacher.embed_class(prompts))
    provenance: Provenance = {
        "classes": list(classes),
        "templates": list(params.class_text.templates),
        "temperature": teacher.temperature,
        "teacher": teacher.digest,
        "units": "unit vectors",
    }
    arrays = {"embedding": torch.stack(embeddings).numpy()}
    write_store(CLASS_TEXT, arrays, provenance, job.staging, {"class": classes})


if __name__ == "__main__":
    main("class_text", run)
