"""Every file that a stage reads: flipped, cut or gone, it is refused, or it changed nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Project
from tests.faults.conftest import refusal
from tests.test_dvc_yaml import STAGES, paths

READ = [
    (stage, dep)
    for stage in STAGES
    for dep in sorted(paths(stage, "deps"))
    if dep.startswith(("data/", "results/")) and dep != "data/checked"
]
QUICK = {  # one stage for each way of reading
    ("bias", "data/class_text.zarr"), ("warmup", "data/initial_labels.parquet"),
    ("global_clip", "data/weights/teacher"), ("train", "data/warmup"),
    ("report", "results/ladder.csv"), ("report", "results/metrics.json"),
}  # fmt: skip
FROZEN = {
    "student__boost": 1.0, "warmup__epochs": 0, "warmup__head": "closed_form",
    "train__epochs": 0, "train__head": "closed_form",
}  # fmt: skip


def outputs(project: Project, stage: str) -> dict[str, bytes]:
    files = project.digests(*(f"{out}/**/*" for out in paths(stage, "outs", "metrics", "plots")))
    return files | project.digests(*paths(stage, "outs", "metrics", "plots"))


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x04
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("stage", "dep"),
    [pytest.param(*one, marks=[] if one in QUICK else pytest.mark.long) for one in READ],
)
def test_a_damaged_artifact_is_refused_or_changes_nothing(
    project: Project, stage: str, dep: str, tmp_path: Path
):
    if dep == "data/student_features.zarr":  # read where nothing is trained
        project.set(**FROZEN)
        for before in ("student_features", "warmup", "train", "thresholds", "evaluate"):
            project.stage(before)
    expected, refused = outputs(project, stage), 0
    whole = project / dep
    files = [whole] if whole.is_file() else sorted(f for f in whole.rglob("*") if f.is_file())
    assert files
    for file in files:
        for how in ("flip", "truncate", "remove"):
            kept = tmp_path / "kept"
            shutil.copy2(file, kept)
            damage(file, how)
            done = project.stage(stage, check=False)
            shutil.copy2(kept, file)
            if done.returncode:
                said = refusal(done)
                assert dep in said or file.name in said, said
                refused += 1
            else:
                assert outputs(project, stage) == expected, (file, how)
    assert refused, f"no damage to {dep} was noticed"
    project.stage(stage)
    assert outputs(project, stage) == expected


def test_the_stages_and_artifacts_are_all_enumerated():
    assert len(READ) > 40
    assert set(READ) >= QUICK


def test_what_lies_beside_an_artifact_is_not_taken_for_a_part_of_it(project: Project):
    """As a partial file of a copy that was broken off."""
    expected = outputs(project, "bias")
    old = "data/.initial_labels.parquet.old"
    for place in ("data/global_clip.zarr/embedding/c/0/0.partial", old):
        (project / place).write_bytes(b"half")
    project.stage("bias")
    assert outputs(project, "bias") == expected
    assert not (project / old).exists()
