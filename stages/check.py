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

KINDS = ("outs", "metrics", "plots")
NAMING = (
    "source.root", "source.classes", "source.labels", "source.answers", "teacher.checkpoint",
    "student.checkpoint", "cam_boxes.boxes",
)  # fmt: skip


def run(params: Params, job: Job) -> None:
    raw, made = read_yaml(PARAMS_FILE), made_by_stages()
    for key in NAMING:
        path = Path(lookup(raw, key))
        tracked = any(Path(f"{one}.dvc").exists() for one in (path, *path.parents))
        if not (path.exists() or tracked or any(path.is_relative_to(out) for out in made)):
            raise UserError(
                f"{key} in params.yaml: {path} is not there: put it there, or name another"
            )
    place = job.staging / CHECKED
    place.parent.mkdir(parents=True)
    place.write_text("params.yaml is valid, and the files that it names are there.\n")


def made_by_stages() -> list[Path]:
    """What stages make, as the demo's photographs; their `dvc.yaml` is two folders deep at most."""
    outs: list[Path] = []
    for file in chain(*(Path().glob(f"{depth}dvc.yaml") for depth in ("", "*/", "*/*/"))):
        for stage in ((read_yaml(file) or {}).get("stages") or {}).values():
            given = chain(*(stage.get("do", stage).get(kind) or [] for kind in KINDS))
            names = (next(iter(out)) if isinstance(out, dict) else out for out in given)
            outs += [Path(file.parent, stage.get("wdir", "."), name).resolve() for name in names]
    here = Path().resolve()
    return [out.relative_to(here) for out in outs if out.is_relative_to(here)]


if __name__ == "__main__":
    main("check", run)
