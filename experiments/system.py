"""One system of Table 1 that has a network of its own, trained and judged as the methods are.

    python -m experiments.system sst
    python -m experiments.table1                     all of them, by DVC, in a clone

Partial labels, a tenth of them, or none: then what the pipeline's pseudo-labels say is known, the
likely classes for present and the less likely half for absent. Reads the index, the ground truth,
the pseudo-labels, the student's first weights, the class embeddings and the teacher. Writes
`results/table1/SYSTEM.json`. Resumes by epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from torch import Tensor

from experiments.adds import Decoder, Pyramid
from experiments.baseline import first_of
from experiments.decoupled import Decoupled, co_occurrence
from experiments.dualcoop import Asymmetric, DualPrompts, Prompts
from experiments.methods import UNPUBLISHED, Published
from experiments.network import Network, config_of, train_and_judge
from experiments.observed import Observed, likely, some_known, with_unlikely
from experiments.patches import Patches
from experiments.results import Data, aligned, read_data, write_result
from experiments.sarb import Sarb
from experiments.settings import Baseline, read_settings
from experiments.sst import Sst
from stages.artifacts import CLASS_TEXT, PSEUDO_LABELS, TEACHER
from stages.method.objective import Objective
from stages.models.device import device
from stages.models.student import Student
from stages.models.teacher import Teacher
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.sources.class_list import class_list
from stages.storage.arrays import read_store
from stages.storage.tables import class_columns, read_table


class Given(NamedTuple):
    """What a system is built of. observed (images, classes): 1 present, -1 absent, 0 unknown;
    texts: embeddings of the classes (classes, dim).
    """

    params: Params
    observed: Tensor
    texts: Tensor
    student: Student

    @property
    def epochs(self) -> int:
        """Of the training."""
        return self.params.warmup.epochs + self.params.train.epochs


Build = Callable[[Given], tuple[Network, Objective]]


class System(NamedTuple):
    """A row of the table. knows: some (labels) or clip."""

    title: str
    knows: str
    build: Build
    published: Published = UNPUBLISHED


def sst(given: Given) -> tuple[Network, Objective]:
    """On the student's backbone."""
    head, network = decoupled(given)
    return network, Sst(given.observed, head, given.epochs)


def sarb(given: Given) -> tuple[Network, Objective]:
    """On the student's backbone."""
    head, network = decoupled(given)
    return network, Sarb(given.observed, head, given.epochs, given.params.seed)


def decoupled(given: Given) -> tuple[Decoupled, Network]:
    """The network that SST and SARB share."""
    student = given.student
    head = Decoupled(student.head.in_channels, given.texts, co_occurrence(given.observed))
    return head, Network(student.backbone, head, student.config)


def dualcoop(given: Given) -> tuple[Network, Objective]:
    """On the frozen teacher's patches."""
    teacher = Teacher(TEACHER, device(), given.params.global_clip.precision)
    words = list(class_list(given.params.source.classes).values())
    head = DualPrompts(Prompts(teacher, words))
    config = config_of(teacher, given.params, given.student.config)
    return Network(Patches(teacher), head, config), Asymmetric(given.observed)


def adds(given: Given) -> tuple[Network, Objective]:
    """On a pyramid of the frozen teacher's patches."""
    teacher = Teacher(TEACHER, device(), given.params.global_clip.precision)
    pyramid = Pyramid(Patches(teacher))
    config = config_of(teacher, given.params, given.student.config)
    return Network(pyramid, Decoder(given.texts), config), Asymmetric(given.observed)


SYSTEMS: dict[str, System] = {
    "sst": System("SST (Chen et al.)", "some", sst, (None, 81.5, 68.1, None)),
    "sarb": System("SARB", "some", sarb, (None, 85.7, 72.5, None)),
    "dualcoop": System("DualCoOp", "some", dualcoop, (None, 90.3, None, None)),
    "clip_sst": System("SST on pseudo-labels", "clip", sst),
    "clip_sarb": System("SARB on pseudo-labels", "clip", sarb),
    "clip_dualcoop": System("DualCoOp on pseudo-labels", "clip", dualcoop),
    "clip_adds": System("ADDS' decoder on pseudo-labels, approximate", "clip", adds),
}


def run(name: str, params: Params, job: Job) -> None:
    system, settings, data = SYSTEMS[name], read_settings().baseline, read_data()
    _ = data.judged  # or refuse, before anything is loaded
    texts, of_texts = read_store(CLASS_TEXT)
    data.must_be_of(of_texts["classes"])
    observed = observe(system, data, settings, np.random.default_rng(params.seed))
    student = first_of(params, data, 1.0)
    torch.manual_seed(params.seed)
    text = torch.from_numpy(texts["embedding"][...])
    given = Given(params, torch.from_numpy(observed), text, student)
    network, objective = system.build(given)
    found = train_and_judge(job, params, data, network, objective)
    known = round(float((observed != 0).sum(axis=1).mean()), 3)
    told = {"knows": system.knows, "observed_per_image": known}
    write_result(job, name, {"method": name} | found | told)


def observe(system: System, data: Data, settings: Baseline, rng: np.random.Generator) -> Observed:
    """What is known of the training images' labels: a part of the truth, or of pseudo-labels."""
    if system.knows == "some":
        truth = aligned(data.truth, data.rows)
        if np.isnan(truth).all():
            raise UserError("this system needs labels of training images: see source.labels")
        return some_known(truth, settings.share, rng)
    pseudo, _ = read_table(PSEUDO_LABELS, data.digest)
    data.must_be_of(class_columns(PSEUDO_LABELS, pseudo))
    scores = aligned(pseudo, data.rows)
    return with_unlikely(likely(scores, settings.threshold), scores, settings.unlikely)


def command(
    system: Annotated[str, typer.Argument(help="A key of SYSTEMS in experiments/system.py.")],
) -> None:
    """Train and judge one system."""
    if system not in SYSTEMS:
        raise typer.BadParameter(f"{system}: one of {', '.join(SYSTEMS)}")
    declared_by = partial(
        declaration, "system", file=Path("experiments/dvc.yaml"), item={"system": system}
    )
    main(f"system-{system}", partial(run, system), declared_by=declared_by)


if __name__ == "__main__":
    typer.run(command)
