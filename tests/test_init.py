"""`ccd init` makes a project of one's own, whose code stays where it is installed."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from stages.command.cli import app
from stages.command.init import update
from stages.runtime.code import ROOT, digest_of, must_be_the_code_said
from stages.runtime.errors import UserError
from tests.conftest import MINI, MINI_CLASSES, Project

IGNORED = shutil.ignore_patterns("__pycache__")


@pytest.fixture
def photos(laid_out: Path) -> Path:
    return laid_out / "photos"


@pytest.fixture(scope="module")
def made_once(laid_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("made") / "mine"
    done = init(place, laid_out / "photos", "star,moon,heart,tree")
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """A project in which nothing has run, to change."""
    return Path(shutil.copytree(made_once, tmp_path / "mine", symlinks=True))


def init(place: Path, photos: Path, classes: str, *words: str):
    given = ["--images", str(photos), "--classes", classes, *words]
    return CliRunner().invoke(app, ["init", str(place), "--no-doctor", *given])


def content(path: Path) -> dict:
    return YAML(typ="safe").load(path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "stages", source / "stages", ignore=IGNORED)
    pip = [sys.executable, "-m", "pip"]
    wheel = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", source, source]
    subprocess.run([*pip, *wheel], check=True)
    (file,) = source.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--target", target, file], check=True)
    return target


@pytest.mark.slow
def test_from_the_wheel_alone_it_is_three_commands_to_names(
    laid_out: Path, installed: Path, warm: dict[str, str], tmp_path: Path
):
    outside = Project(tmp_path, warm | {"PYTHONPATH": str(installed)})
    found = outside.run("python", "-m", "inspect", "--details", "stages.index").stdout
    assert str(installed) in found
    settings = MINI | {"teacher.model": "local-dir", "teacher.pretrained": "none"}
    settings |= {"student.arch": "teacher_tower", "student.weights": "teacher"}
    settings |= {"student.output_stride": 16, "bias.entropy_unit": "normalised"}
    settings |= {"teacher.checkpoint": str(laid_out / "teacher")}
    words = [f"--set={key}={value}" for key, value in settings.items() if "source." not in key]
    ccd = ("python", "-m", "stages.command.cli")
    where = ("--images", str(laid_out / "photos"), "--classes", str(laid_out / "classes.txt"))
    of_photos = {f: f.stat().st_mtime_ns for f in (laid_out / "photos").rglob("*")}
    words += ["--labels", str(laid_out / "truth.csv")]
    said = outside.run(*ccd, "init", "mine", *where, *words).stdout
    assert "time: about" in said
    mine = Project(tmp_path / "mine", outside.environment)
    assert "report" in mine.repro()
    named = mine.run(*ccd, "predict", str(laid_out / "photos/test")).stdout
    assert all(name in named for name in MINI_CLASSES)
    assert not mine.repro()
    assert {f: f.stat().st_mtime_ns for f in (laid_out / "photos").rglob("*")} == of_photos


def test_the_photographs_stay_where_they_are(made: Path, photos: Path):
    assert (made / "data/photos").resolve() == photos
    assert (made / "classes.txt").read_text().split() == ["star", "moon", "heart", "tree"]
    assert (made / ".dvc").is_dir()
    status = ["git", "status", "--porcelain", "-uall"]
    done = subprocess.run(status, cwd=made, capture_output=True, text=True, check=True)
    assert "params.yaml" in done.stdout
    assert "photos" not in done.stdout


@pytest.mark.parametrize("suffix", ["csv", "txt", "json"])
def test_a_users_labels_are_no_part_of_the_project(photos: Path, tmp_path: Path, suffix: str):
    own = tmp_path / f"own.{suffix}"
    own.write_text("mine")
    done = init(tmp_path / "mine", photos, "a,b", "--labels", str(own))
    assert done.exit_code == 0, done.output
    status = ["git", "status", "--porcelain", "-uall"]
    said = subprocess.run(status, cwd=tmp_path / "mine", capture_output=True, text=True, check=True)
    assert "labels" not in said.stdout


def test_of_few_classes_no_more_than_half_get_a_view(made: Path):
    assert content(made / "params.yaml")["cam_boxes"]["mean_views"] == 2.0


def test_of_two_classes_the_published_search_has_its_views(photos: Path, tmp_path: Path):
    done = init(tmp_path / "mine", photos, "a,b", "--recipe", "official")
    assert done.exit_code == 0, done.output


def test_in_a_repository_no_other_is_made(photos: Path, tmp_path: Path):
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    assert init(tmp_path / "mine", photos, "a,b").exit_code == 0
    assert not (tmp_path / "mine/.git").exists()
    assert (tmp_path / "mine/.dvc/config").is_file()
    status = ["git", "status", "--porcelain"]
    done = subprocess.run(status, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "?? mine/\n"


def test_an_empty_folder_becomes_the_project_though_it_is_where_one_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    monkeypatch.chdir(tmp_path / "mine")
    assert init(Path(), photos, ",".join(f"class {n}" for n in range(99))).exit_code == 0
    assert len(Path("classes.txt").read_text().splitlines()) == 99
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["link", "mine"]
    assert "is there already" in init(tmp_path / "link", photos, "a,b").stderr


USUAL = "mine --images PHOTOS --classes a,b"
BAD = {  # what is typed, and what is said
    "a folder with something in it": (
        "full --images PHOTOS --classes a,b",
        "full is there already",
    ),
    "a file": ("full/own --images PHOTOS --classes a,b", "is there already"),
    "no folder around": ("gone/mine --images PHOTOS --classes a,b", "gone is no folder"),
    "no photographs": ("mine --images full --classes a,b", "full"),
    "no such folder of photographs": (
        "mine --images gone --classes a,b",
        "--images: gone is no folder",
    ),
    "no such file of classes": (
        "mine --images PHOTOS --classes gone.txt",
        "--classes: gone.txt is no file",
    ),
    "a class twice": (
        "mine --images PHOTOS --classes a,a",
        "mine/classes.txt names the class 'a' twice",
    ),
    "no such labels": (f"{USUAL} --labels gone.csv", "--labels: gone.csv is no file"),
    "no such recipe": (f"{USUAL} --recipe best", "no recipe 'best'"),
    "no such parameter": (f"{USUAL} --set seeds=1", "--set: params.yaml has no seeds"),
    "no such section": (f"{USUAL} --set labelz.floor=1", "--set: params.yaml has no labelz.floor"),
    "a parameter below a parameter": (
        f"{USUAL} --set seed.x=1",
        "--set: params.yaml has no seed.x",
    ),
    "a day that is none": (
        f"{USUAL} --set seed=2024-02-30",
        "--set: '2024-02-30', the value of seed, is not valid YAML",
    ),
    "a parameter without a value": (f"{USUAL} --set seed", "'seed' is not of the form key=value"),
    "a value that cannot be": (f"{USUAL} --set seed=-1", "params.yaml: `seed` is -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_made_leaves_nothing_behind(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/own").write_text("mine")
    monkeypatch.chdir(tmp_path)
    typed, why = BAD[case]
    words = typed.replace("PHOTOS", str(photos)).split()
    done = CliRunner().invoke(app, ["init", "--no-doctor", *words])
    assert done.exit_code == 1, done.output
    assert why in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / ".mine") not in done.stderr
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["full", "own"]


def test_a_project_among_its_own_photographs_is_refused(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(b"a")
    done = init(tmp_path / "mine", tmp_path, "a,b")
    assert (done.exit_code, "lies in" in done.stderr) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]


def of_another_version(project: Path, stage: str) -> None:
    """As if that stage's code had been another when the project was made."""
    text = (project / "code.yaml").read_text()
    (project / "code.yaml").write_text(text.replace(digest_of(stage), "an older one"))


def test_no_stage_runs_with_another_code_than_is_said(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(made)
    must_be_the_code_said("bias")
    of_another_version(made, "bias")
    done = subprocess.run(
        [sys.executable, "-m", "stages.bias"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "`ccd update`" in done.stderr
    assert (
        CliRunner()
        .invoke(app, ["update"])
        .stdout.startswith("code.yaml is of the installed version: the code of bias is another")
    )
    must_be_the_code_said("bias")
    assert update() == []


def test_an_edited_pipeline_is_not_overwritten(made: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(made)
    old, code = (made / "dvc.yaml").read_text(), (made / "code.yaml").read_text()
    pipeline = content(made / "code.yaml")["pipeline"]
    (made / "code.yaml").write_text(code.replace(pipeline, "that of an older version"))
    edited = old + "  mine: {cmd: echo}\n"
    (made / "dvc.yaml").write_text(edited)
    with pytest.raises(UserError, match=r"was edited.*dvc.yaml.new"):
        update()
    assert (made / "dvc.yaml").read_text() == edited
    assert (made / "dvc.yaml.new").read_text() == old
    with pytest.raises(UserError, match=r"was edited.*dvc.yaml.new"):
        update()  # nothing was done about it
    (made / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(UserError, match=r"was edited.*dvc.yaml.new"):
        update()  # stages are missing
    (made / "dvc.yaml").write_text(edited)  # they have been brought together
    update()
    assert (made / "dvc.yaml").read_text() == edited
    assert not (made / "dvc.yaml.new").exists()
    assert update() == []


def test_a_pipeline_that_was_left_alone_is_brought_up_to_date(
    made: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(made)
    own = (made / "dvc.yaml").read_text()
    (made / "dvc.yaml").write_text("stages: {}\n")
    pipeline = content(made / "code.yaml")["pipeline"]
    older = hashlib.sha256(b"stages: {}\n").hexdigest()[:16]
    code = (made / "code.yaml").read_text()
    (made / "code.yaml").write_text(code.replace(pipeline, older))
    update()
    assert (made / "dvc.yaml").read_text() == own


def test_elsewhere_there_is_nothing_to_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["update"])
    assert (done.exit_code, "is for what `ccd init` made" in done.stderr) == (1, True)
