"""`dvc.yaml` says what the code does: DVC believes it, so every word of it is compared."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages import artifacts
from stages.command.deps import (
    CODE,
    OF_A_PROJECT,
    PACKAGES,
    PIPELINE,
    of_a_project,
    with_deps,
    write,
)
from stages.runtime.code import ROOT, code_of, import_closure, imported_files
from tests.declarations import leaves, parameters_read

STAGES: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
TRAINING = {"bias", "warmup", "cam_boxes", "local_clip", "fuse_labels", "train", "global_clip"}


def paths(stage: str, *kinds: str) -> set[str]:
    items = [item for kind in kinds for item in STAGES[stage].get(kind, [])]
    return {next(iter(item)) if isinstance(item, dict) else item for item in items}


def declarations() -> list[tuple[str, str]]:
    return [
        (file, stage) for file in PACKAGES for stage in YAML(typ="safe").load(ROOT / file)["stages"]
    ]


@pytest.mark.parametrize(("file", "stage"), declarations())
def test_the_code_a_stage_depends_on_is_what_it_imports_but_for_the_runtime(file: str, stage: str):
    """`make deps` writes it."""
    entry = YAML(typ="safe").load(ROOT / file)["stages"][stage]
    declared = [dep for dep in entry["deps"] if dep.startswith(CODE)]
    assert declared == code_of(ROOT / PACKAGES[file] / f"{stage}.py")
    assert not [dep for dep in declared if dep.startswith("stages/runtime")]


def test_the_pipeline_of_a_project_is_this_one_with_its_code_by_digest(tmp_path: Path):
    """`make deps` writes it."""
    own = with_deps(ROOT / "dvc.yaml", ROOT / "stages")
    write(of_a_project(own), tmp_path / "made.yaml", OF_A_PROJECT)
    assert (ROOT / PIPELINE).read_text() == (tmp_path / "made.yaml").read_text()
    for stage, entry in YAML(typ="safe").load(ROOT / PIPELINE)["stages"].items():
        assert entry["params"][-1] == {"code.yaml": [stage]}
        assert not [dep for dep in entry["deps"] if dep.startswith("stages")]


def test_no_file_of_the_runtime_imports_what_may_change_a_result():
    for path in ROOT.glob("stages/runtime/*.py"):
        others = {file.relative_to(ROOT).as_posix() for file in imported_files(path)}
        outside = {file for file in others if not file.startswith("stages/runtime/")}
        assert outside <= {"stages/storage/version.py"}, path


@pytest.mark.slow
def test_what_importing_a_stage_executes_is_among_what_it_is_said_to_import():
    """By Python itself: every module of the project that is there after the import."""
    code = "import sys, importlib; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    for stage in ("bias", "train"):
        command = [sys.executable, "-c", code, f"stages.{stage}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        loaded = {m.replace(".", "/") + ".py" for m in done.stdout.split() if "stages." in m}
        files = {file for file in loaded if (ROOT / file).is_file()}
        assert len(files) > 10
        assert files <= import_closure(ROOT / f"stages/{stage}.py")


@pytest.mark.parametrize("stage", STAGES)
def test_the_parameters_of_a_stage_are_those_it_reads(stage: str):
    declared = set().union(*(leaves(key) for key in STAGES[stage].get("params", [])))
    assert declared == parameters_read(ROOT / f"stages/{stage}.py")
    assert ("params.yaml" in paths(stage, "deps")) == (stage == "check")


@pytest.mark.parametrize("stage", STAGES)
def test_the_artifacts_of_a_stage_are_those_it_names(stage: str):
    """Every artifact the module imports is declared, as input or output, and no other is."""
    tree = ast.parse((ROOT / f"stages/{stage}.py").read_text())
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "stages.artifacts"
        for alias in node.names
        if alias.name.isupper()
    }
    if "read_index(" in (ROOT / f"stages/{stage}.py").read_text():
        names.add("INDEX")
    known = {
        name: getattr(getattr(artifacts, name), "path", getattr(artifacts, name)) for name in names
    }
    named = {path.as_posix() for path in known.values()}
    declared = {
        path
        for path in paths(stage, "deps", "outs", "metrics", "plots")
        if path.startswith(("data/", "results/"))
    }
    declared -= {"data/checked"} if stage != "check" else set()  # only comes before the others
    for path in named:
        assert any(
            PurePosixPath(path).is_relative_to(d) or PurePosixPath(d).is_relative_to(path)
            for d in declared
        ), f"{stage} names {path}, which dvc.yaml does not"
    for path in declared:
        assert any(
            PurePosixPath(n).is_relative_to(path)
            or PurePosixPath(path).is_relative_to(n)
            or PurePosixPath(path).with_suffix("") == PurePosixPath(n).with_suffix("")
            for n in named
        ), f"dvc.yaml gives {stage} {path}, which it does not name"


def reaches(start: set[str]) -> set[str]:
    """The stages downstream of the paths in `start`."""
    found: set[str] = set()
    waiting = set(start)
    while waiting:
        path = waiting.pop()
        for stage in STAGES:
            reads = any(
                path == dep or dep.startswith(f"{path}/") or path.startswith(f"{dep}/")
                for dep in paths(stage, "deps")
            )
            if reads and stage not in found:
                found.add(stage)
                waiting |= paths(stage, "outs", "metrics", "plots")
    return found


def test_no_path_leads_from_ground_truth_to_training():
    assert reaches({"${source.labels}"}) == {"ground_truth", "evaluate", "report"}
    assert not reaches({"data/ground_truth.parquet"}) & TRAINING
    # the oracle itself sees a path where there is one
    assert reaches({"data/initial_labels.parquet"}) >= {"warmup", "train"}


def test_no_code_of_a_training_stage_names_ground_truth():
    for stage in TRAINING:
        for file in import_closure(ROOT / f"stages/{stage}.py") - {"stages/artifacts.py"}:
            text = (ROOT / file).read_text()
            assert not re.search(r"GROUND_TRUTH|ground_truth|source\.labels", text), (stage, file)
    assert "GROUND_TRUTH" in (ROOT / "stages/evaluate.py").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_described_and_runs_its_own_module(stage: str):
    assert STAGES[stage]["desc"]
    assert STAGES[stage]["cmd"] == f"python -m stages.{stage}"
    assert (ROOT / f"stages/{stage}.py").read_text().startswith(f'"""Stage `{stage}`:')


def test_no_parameter_has_a_name_that_dvc_leaves_out_of_its_run_cache():
    """DVC drops keys named `size` and `nfiles`, at any depth, from the digest of a run.

    A parameter of that name in a group would give back the outputs of another value.
    """
    assert not {key.rpartition(".")[2] for key in leaves()} & {"size", "nfiles"}


def test_the_page_template_is_a_dependency_of_the_report():
    assert (ROOT / "stages/page/page.html").exists()
    assert "stages/page" in paths("report", "deps")


def test_whatever_runs_first_runs_after_the_check():
    for stage in STAGES:
        users = [dep for dep in paths(stage, "deps") if dep.startswith("${")]
        assert not users or "data/checked" in paths(stage, "deps") or stage == "cam_boxes"


def test_packages_hold_nothing_but_a_docstring():
    for path in ROOT.glob("stages/*/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, path
        assert isinstance(body[0], ast.Expr), path


def test_no_stage_is_over_200_lines_and_no_file_over_300():
    for path in ROOT.glob("stages/**/*.py"):
        most = 200 if path.stem in STAGES and path.parent.name == "stages" else 300
        assert len(path.read_text().splitlines()) <= most, path


# they work on what a damaged file says, which may be anything, and may raise anything
HARMLESS = {"parts_of", "utf8"}


def broad_handlers() -> list[tuple[Path, ast.Try, ast.ExceptHandler]]:
    """Every `except` of the program that catches nearly anything, with its `try`."""
    files = [
        path for top in ("stages", "experiments", "bench") for path in ROOT.glob(f"{top}/**/*.py")
    ]
    return [
        (path, node, handler)
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Try)
        for handler in node.handlers
        if handler.type is None or ast.unparse(handler.type) in ("Exception", "BaseException")
    ]


def test_whoever_catches_anything_says_why_and_lets_faults_of_our_own_through():
    assert broad_handlers()
    for path, tried, handler in broad_handlers():
        text, place = path.read_text(), f"{path}:{handler.lineno}"
        assert re.search(r":  # \w.{15}", text.splitlines()[handler.lineno - 1]), place
        own = set(re.findall(r"^(?:def|class) (\w+)", text, re.MULTILINE))
        for imported in re.findall(
            r"^from stages\S+ import ([^()\n]+|\([^)]+)", text, re.MULTILINE
        ):
            own |= set(re.findall(r"\w+", imported))
        calls = [n for part in tried.body for n in ast.walk(part) if isinstance(n, ast.Call)]
        called = {ast.unparse(call.func) for call in calls} & own - HARMLESS
        if called and not ast.unparse(handler).endswith("\n    raise"):
            assert "if ours(error)" in ast.unparse(handler), (place, called)
