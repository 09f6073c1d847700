"""Stage `check`: `params.yaml` as a whole, and whether the files that it names are there.

DVC gives each stage its own parameters, and would never look at a key that none of them has. Reads
`params.yaml`; writes `data/checked`, always the same, so that nothing reruns for it.

    python -m stages.check
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from stages.artifacts import CHECKED
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import lookup
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.params_file import PARAMS_FILE, read_yaml

NAMING = (
    "source.root", "source.classes", "source.labels", "teacher.checkpoint", "student.checkpoint",
    "cam_boxes.boxes",
)  # fmt: skip


def run(params: Params, job: Job) -> None:
    raw, made = read_yaml(PARAMS_FILE), made_by_stages()
    for key in NAMING:
        path = Path(lookup(raw, key))
        if not path.exists() and not any(path.is_relative_to(out) for out in made):
            tracked = Path(f"{path}.dvc").exists()
            remedy = "run `dvc pull`" if tracked else "put it there, or name another"
            raise UserError(f"{key} in params.yaml: {path} is not there: {remedy}")
    place = job.staging / CHECKED
    place.parent.mkdir(parents=True)
    place.write_text("params.yaml is valid, and the files that it names are there.\n")


def made_by_stages() -> list[Path]:
    """What stages in the `dvc.yaml` of other folders make, as the demo's photographs."""
    outs: list[Path] = []
    for file in Path().glob("*/dvc.yaml"):
        for stage in read_yaml(file)["stages"].values():
            given = chain(*(stage.get(kind, []) for kind in ("outs", "metrics", "plots")))
            names = (next(iter(out)) if isinstance(out, dict) else out for out in given)
            outs += [Path(file.parent, stage.get("wdir", "."), name).resolve() for name in names]
    here = Path().resolve()
    return [out.relative_to(here) for out in outs if out.is_relative_to(here)]


if __name__ == "__main__":
    main("check", run)
