"""Sixty wrong uses and inputs: one line with what, where and what to do, at once, and no trace."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Project

CCD = str(Path(sys.executable).with_name("ccd"))
SECONDS = 2.0  # of a processor, the start of Python included

# what is typed in a finished project, its exit status, and what the line says
IN_A_PROJECT = [
    ("ccd", 2, "Usage: ccd"),
    ("ccd paint", 2, "No such command 'paint'"),
    ("ccd --quiet", 2, "No such option: --quiet"),
    ("ccd predict", 2, "Missing argument 'paths'"),
    ("ccd predict gone.jpg", 1, "gone.jpg is not there"),
    ("ccd predict photos --student gone.safetensors", 1, "gone.json is not there: run `dvc repro`"),
    ("ccd predict photos --student photos", 1, "photos/student.json is not there"),
    ("ccd predict photos --student .", 1, "student.json is not there: run `dvc repro`"),
    ("ccd predict photos --student truth.csv", 1, "truth.json is not there"),
    ("ccd predict photos --student half.safetensors", 1, "half.safetensors is not there"),
    ("ccd predict photos --student no.safetensors", 1, "no.json is damaged (it is no JSON)"),
    ("ccd predict photos --student odd.safetensors", 1, "odd.safetensors is no trained student"),
    ("ccd predict photos -o gone/said.csv", 2, "there is no folder gone"),
    ("ccd predict photos -o photos", 2, "name"),
    ("ccd predict photos -o said.xls", 2, "said.xls: give --format, or a name that ends in .json"),
    ("ccd predict photos -f parquet", 2, "parquet cannot be printed: give --output"),
    ("ccd predict photos -f xml", 2, "'xml' is not one of 'text', 'json', 'csv', 'parquet'"),
    ("ccd predict photos --threshold 1.5", 2, "less than or equal to 1"),
    ("ccd predict photos --threshold high", 2, "'--threshold'"),
    ("ccd predict photos --top -1", 2, "'--top'"),
    ("ccd predict photos --top 1 --threshold 0.5", 2, "give one of them"),
    ("ccd predict photos --max-pixels 0", 2, "'--max-pixels'"),
    ("ccd predict empty", 1, ".webp) below empty"),
    ("ccd export a.onnx b.onnx", 2, "unexpected extra argument"),
    ("ccd export photos", 2, "photos is a folder: name a file in it"),
    ("ccd export a.onx", 2, "its name should end in .onnx"),
    ("ccd export a.onnx --student b.onnx", 2, "b.onnx is exported already"),
    ("ccd export gone/a.onnx", 2, "there is no folder gone"),
    ("ccd export a.onnx --student gone.safetensors", 1, "gone.json is not there"),
    ("ccd preset", 2, "Missing argument 'dataset'"),
    ("ccd preset imagenet", 2, "no preset for 'imagenet', but for voc12"),
    ("ccd preset folder --recipe mine", 2, "no recipe 'mine', but paper"),
    ("ccd preset demo --recipe paper", 2, "the demo has no recipes"),
    ("ccd preset voc12 -o gone/params.yaml", 2, "there is no folder gone"),
    ("ccd fetch imagenet", 2, "nothing is known of 'imagenet', but of voc07"),
    ("ccd update", 1, "code.yaml is not here"),
    ("ccd inspect", 2, "Missing argument 'image'"),
    ("ccd inspect gone.jpg", 1, "gone.jpg is no image of data/index.parquet, which has test/"),
    ("ccd inspect photos/train/00000.jpg --picture a.gif", 2, "should end with .png or .jpg"),
    ("ccd inspect photos/train/00000.jpg --picture gone/a.png", 2, "there is no folder gone"),
    ("ccd review", 2, "Missing argument 'output'"),
    ("ccd review queue.txt", 2, "its name should end in .csv, .json or .parquet"),
    ("ccd review queue.csv --format coco", 2, "a file for coco should end in .json"),
    ("ccd review gone/queue.csv", 2, "there is no folder gone"),
    ("ccd review truth.csv", 1, "truth.csv is there already"),
    ("ccd review queue.csv --count 0", 2, "'--count'"),
    ("ccd review queue.csv --split val", 2, "'val' is not one of 'all', 'train', 'test'"),
    ("ccd compare gone", 1, "gone"),
    ("ccd init photos --images photos --classes a,b", 1, "photos is there already"),
    ("ccd init new --images gone --classes a,b", 1, "--images: gone is no folder"),
    ("ccd init new --images truth.csv --classes a,b", 1, "--images: truth.csv is no folder"),
    ("ccd init photos/new --images photos --classes a,b", 1, "name a folder elsewhere"),
    ("ccd init new --images photos --classes dog", 1, "names are given by comma: cat,dog"),
    ("ccd init new --images photos --classes empty.txt", 1, "names no class"),
    ("ccd init new --images photos --classes a,b,a", 1, "names the class 'a' twice"),
    ("ccd init new --images photos --classes a,labels", 1, "'labels' cannot be the name of a"),
    ("ccd init new --images photos --classes a,+b", 1, "'+b' would be a formula"),
    ("ccd init new --images photos --classes a,b --labels gone.csv", 1, "--labels: gone.csv is no"),
    (
        "ccd init new --images photos --classes a,b --labels photos",
        1,
        "--labels: photos is no file",
    ),
    ("ccd init new --images photos --classes a,b --recipe mine", 1, "no recipe 'mine'"),
    ("ccd init new --images photos --classes a,b --set seed", 1, "not of the form key=value"),
    ("ccd init new --images photos --classes a,b --set sead=1", 1, "params.yaml has no sead"),
    ("ccd init new --images photos --classes a,b --set seed=[", 1, "is not valid YAML"),
    ("ccd init new --images photos --classes a,b --set seed=-1", 1, "`seed` is -1"),
    ("ccd init gone/new --images photos --classes a,b", 1, "gone is no folder"),
    ("ccd init new --images photos", 2, "Missing option '--classes'"),
]
# in a folder with nothing but a params.yaml of this content; None: with nothing at all
ELSEWHERE = [
    ("ccd ladder", None, 1, "is not there: run `dvc repro` first"),
    ("ccd check", None, 1, "data/doubts.csv is not there: run `dvc repro` first"),
    ("ccd again", None, 1, "params.yaml is not here"),
    ("ccd status", None, 1, "params.yaml is not here"),
    ("ccd doctor", None, 1, "params.yaml is not here"),
    ("ccd inspect a.jpg", None, 1, "data/index.parquet is not there"),
    ("ccd review queue.csv", None, 1, "params.yaml is not here"),
    ("ccd compare main", None, 1, "results"),
    ("ccd doctor", "seed: [", 1, "params.yaml is not valid YAML"),
    ("ccd status", "- seed", 1, "expected sections of keys, found list"),
    ("ccd doctor", "", 1, "expected sections of keys, found NoneType"),
]


@pytest.fixture(scope="module")
def place(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wrong") / "project"
    shutil.copytree(finished.root, root, symlinks=True, ignore=shutil.ignore_patterns("cache"))
    (root / "empty").mkdir()
    (root / "empty.txt").write_text("\n")
    (root / "half.json").write_text('{"classes": []}')
    for name, note in (("no", "{"), ("odd", '{"model": "RN50"}')):
        (root / f"{name}.safetensors").write_bytes(b"")
        (root / f"{name}.json").write_text(note)
    return root


def everything(root: Path) -> set[str]:
    return {path.as_posix() for path in root.rglob("*")}


def ends(words: list[str], place: Path, code: int, says: str) -> None:
    """The command ends with that code and one line that says that, soon, and leaves nothing."""
    before = everything(place.parent)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [CCD, *words[1:]],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"COLUMNS": "200"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    if len(words) > 1:
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("ccd: ")
        assert not done.stdout
    assert everything(place.parent) == before
    seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    assert seconds < SECONDS


def test_there_are_sixty():
    assert len(IN_A_PROJECT) >= 60


@pytest.mark.parametrize(("typed", "code", "says"), IN_A_PROJECT, ids=lambda v: str(v)[:60])
def test_a_wrong_use_in_a_project(place: Path, typed: str, code: int, says: str):
    ends(typed.split(), place, code, says)


@pytest.mark.parametrize(("typed", "params", "code", "says"), ELSEWHERE, ids=lambda v: str(v)[:40])
def test_a_wrong_use_elsewhere(
    tmp_path: Path, typed: str, params: str | None, code: int, says: str
):
    (tmp_path / "here").mkdir()
    if params is not None:
        (tmp_path / "here/params.yaml").write_text(params)
    ends(typed.split(), tmp_path / "here", code, says)
