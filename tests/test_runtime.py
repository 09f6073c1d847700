"""A file in `stages/runtime/` cannot change a result: an edit there costs nobody anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.runtime.code import ROOT
from stages.runtime.fingerprint import declaration, fingerprint
from stages.runtime.publishing import write_all_whole
from tests.conftest import Project, as_ordinary_processes
from tests.test_resume import SMALL, end_group, halt_at_work, start, work

STAGES = list(YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"])
RUNTIME = [
    "stages/__init__.py",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("stages/runtime/*.py")),
]


def changed(project: Project) -> set[str]:
    """The stages of which `dvc status` says that something changed."""
    return set(json.loads(project.run("dvc", "status", "--json").stdout))


def fingerprints(project: Project) -> dict[str, str]:
    raw = YAML(typ="safe", pure=True).load(project / "params.yaml")
    return {stage: fingerprint(declaration(stage, raw), raw) for stage in STAGES}


def edit(path: Path) -> None:
    """A line of it, in a way that keeps what it does: each docstring says something more."""
    text = path.read_text()
    path.write_text(re.sub(r'^"""', '"""As ever: ', text, count=1))
    assert path.read_text() != text


def test_an_edit_of_the_runtime_in_mid_run_invalidates_nothing_and_loses_no_block(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.root)
    shutil.rmtree(project / ".ccd")
    assert changed(project) == set()
    before = fingerprints(project)
    process = start(as_ordinary_processes(project), "python", "-m", "stages.global_clip")
    halt_at_work(project, "global_clip", 2, process)
    assert len(RUNTIME) > 10
    for name in RUNTIME:
        edit(project / name)
        assert fingerprints(project) == before, name
    assert changed(project) == set()
    os.killpg(process.pid, signal.SIGCONT)  # it looks at the code again before it publishes
    assert process.wait() == 0, process.communicate()
    blocks = work(project, "global_clip")
    assert len(blocks) > 10
    assert "blocks were done before" in project.stage("global_clip", **SMALL).stderr
    assert work(project, "global_clip") == blocks


def test_what_python_and_editors_leave_in_a_folder_of_code_counts_for_nothing(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(project.root)
    before = fingerprints(project)
    (project / "stages/storage/__pycache__").mkdir(exist_ok=True)
    for name in ("__pycache__/tables.cpython-311.pyc", ".tables.py.swp", "tables.py~"):
        (project / "stages/storage" / name).write_text("something")
    assert fingerprints(project) == before
    assert changed(project) == set()
    (project / "stages/storage/another.py").write_text("")
    assert fingerprints(project) != before


def test_blocks_of_a_run_that_was_killed_are_used_by_an_edited_runtime(project: Project):
    shutil.rmtree(project / ".ccd")
    process = start(as_ordinary_processes(project), "python", "-m", "stages.local_clip")
    halt_at_work(project, "local_clip", 2, process)
    end_group(process)
    kept = work(project, "local_clip")
    for name in RUNTIME:
        edit(project / name)
    assert f"resuming, {len(kept)} of" in project.stage("local_clip", **SMALL).stderr
    assert kept.items() <= work(project, "local_clip").items()


@pytest.mark.parametrize(
    ("file", "line", "stages"),
    [
        ("training/augment.py", "def strong(", {"warmup", "cam_boxes", "train"}),
        ("method/evaluation.py", "def micro_average_precision(", {"evaluate", "report"}),
        ("storage/version.py", "RUNTIME = 1", set(STAGES)),
        ("images/decode.py", "def decode(", set(STAGES) - {
            "check", "ground_truth", "answers", "weights", "class_text", "bias", "fuse_labels"
        }),
    ],
)  # fmt: skip
def test_an_edit_elsewhere_invalidates_the_stages_that_use_it(
    project: Project, file: str, line: str, stages: set[str]
):
    path = project / "stages" / file
    text = path.read_text()
    path.write_text(text.replace(line, f"# edited\n{line}"))
    assert path.read_text() != text
    assert changed(project) == stages


def test_files_that_belong_together_are_all_written_or_none(tmp_path: Path):
    model, notes = tmp_path / "model.onnx", tmp_path / "model.onnx.json"
    model.write_bytes(b"old")
    with pytest.raises(OSError, match="No such file") as error:
        write_all_whole({model: b"new", tmp_path / "gone" / notes.name: b"new"})
    assert error.value.filename == str(tmp_path / "gone" / notes.name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.onnx": b"old"}
    write_all_whole({model: b"new", notes: b"notes"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "model.onnx": b"new",
        "model.onnx.json": b"notes",
    }
