"""What a user gives that contradicts itself, is called oddly, or is no list of labels at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Literal

import pandas as pd
import pytest
from ruamel.yaml import YAML

from stages.command.predict_files import as_csv
from stages.images.decode import inspect
from stages.index import photographs
from stages.runtime.code import ROOT
from stages.runtime.errors import UserError, clean
from stages.runtime.params_file import parse_params, read_yaml
from stages.sources import voc
from stages.sources.class_list import class_list
from stages.sources.coco import read_annotations
from stages.sources.label_table import labels
from stages.storage.tables import read_csv, write_csv
from tests.conftest import Project, write_photos
from tests.faults.conftest import refusal

Form = Literal["NFC", "NFD"]


def said_of(read, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    return str(caught.value)


def test_a_column_that_comes_twice_is_refused_with_both_places(tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text("image_id,star,heart,star\na.jpg,0,1,1\n")
    said = said_of(labels, str(path), ["star", "heart"])
    assert "has the column 'star' twice, as number 2 and 4" in said


def test_columns_that_nobody_reads_may_come_twice(tmp_path: Path):
    """As a spreadsheet's trailing commas."""
    path = tmp_path / "labels.csv"
    path.write_text("image_id,star,,\na.jpg,1,,\n")
    assert labels(str(path), ["star"])["star"].tolist() == [1]


def test_columns_parted_by_semicolons_are_shown(tmp_path: Path):
    path = tmp_path / "labels.csv"
    path.write_text("image_id;star;heart\na.jpg;0;1\n")
    said = said_of(labels, str(path), ["star", "heart"])
    assert "has no column 'image_id'" in said
    assert "its columns are: image_id;star;heart" in said


@pytest.mark.parametrize("again", ["000001  1", "000001 0"])
def test_lines_of_a_voc_list_that_contradict_each_other_are_refused(tmp_path: Path, again: str):
    for part in ("trainval", "test"):
        (tmp_path / f"{part}.txt").write_bytes(b"000001\r\n000002\r\n")
        lines = f"000001 -1\r\n\r\n000002  0\r\n000002  0\r\n{again}\r\n"
        (tmp_path / f"dog_{part}.txt").write_bytes(lines.encode())
    said = said_of(voc.labels, str(tmp_path), ["dog"], "ignore", "2007")
    assert "dog_trainval.txt: lines 1 and 5 contradict each other" in said


def test_lines_of_a_voc_list_that_agree_are_one(tmp_path: Path):
    for part in ("trainval", "test"):
        (tmp_path / f"{part}.txt").write_text("000001\n")
        (tmp_path / f"dog_{part}.txt").write_text("000001  0\n000001  0\n")
    assert voc.labels(str(tmp_path), ["dog"], "positive", "2007")[1].tolist() == [[1], [1]]


def test_classes_called_none_na_or_007_keep_their_names_everywhere(project: Project):
    names = ["None", "NA", "007", "null"]
    (project / "classes.txt").write_text("\n".join(names) + "\n")
    truth = (project / "truth.csv").read_text().split("\n", 1)
    (project / "truth.csv").write_text("image_id," + ",".join(names) + "\n" + truth[1])
    project.repro()
    page = (project / "data/report/index.html").read_text()
    table = pd.read_csv(project / "results/per_class.csv", dtype=str, keep_default_na=False)
    assert table["class"].tolist() == names
    assert pd.read_parquet(project / "data/bias.parquet")["class"].tolist() == names
    for name in names:
        assert f">{name}<" in page, name
    shown = json.loads(project.run("ccd", "predict", "photos/test/00000.jpg").stdout)
    assert list(shown[0]["probabilities"]) == names


def test_a_table_of_the_pipelines_own_keeps_such_names(tmp_path: Path):
    names = ["None", "NA", "007", "null", "nan", ""]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"class": names, "AP": 1.5}))
    assert read_csv(tmp_path / "a.csv")["class"].tolist() == names


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"images": [{"id": Infinity, "file_name": "a"}], "categories": [], "annotations": []}',
         "cannot be read"),
        ('{"images": [{"id": 1.5, "file_name": "a"}], "categories": [], "annotations": []}',
         "the id 1.5 is no whole number"),
        ("[" * 100_000, "nested too deeply"),
        ('{"images": 3, "categories": [], "annotations": []}', "is not of COCO's form"),
        ('{"images": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], '
         '"annotations": []}', "a category comes twice"),
        ("", "cannot be read"),
    ],
)  # fmt: skip
def test_annotations_that_are_none_are_refused(tmp_path: Path, content: str, expected: str):
    path = tmp_path / "instances.json"
    path.write_text(content)
    assert expected in said_of(read_annotations, path, "source.labels")


def coco_project(project: Project, images: list[dict[str, object]]) -> Project:
    shutil.rmtree(project / "photos")
    for split in ("train2014", "val2014"):
        (project / "photos" / split).mkdir(parents=True)
        (project / "photos/annotations").mkdir(exist_ok=True)
        content = {
            "images": images,
            "categories": [{"id": 1, "name": "star"}],
            "annotations": [{"image_id": i["id"], "category_id": 1} for i in images],
        }
        (project / f"photos/annotations/instances_{split}.json").write_text(json.dumps(content))
    project.set(source__kind="coco2014", source__test_folder="", source__labels="data/none")
    return project


def test_a_data_set_without_images_is_refused(project: Project):
    said = refusal(coco_project(project, []).stage("index", check=False))
    assert "source.root in params.yaml: photos lists no image" in said


def test_half_a_character_in_a_name_is_refused(project: Project):
    coco_project(project, [{"id": 1, "file_name": "a\ud800.jpg"}])
    assert "holds a control character" in refusal(project.stage("index", check=False))


@pytest.mark.parametrize("first", "=+-@")
def test_a_class_that_is_a_formula_is_refused(tmp_path: Path, first: str):
    path = tmp_path / "classes.txt"
    path.write_text(f"{first}cmd|'/c calc'!A1 = cat\n")
    assert "would be a formula for a spreadsheet" in said_of(class_list, str(path))


def test_no_cell_of_the_predictions_is_a_formula(project: Project):
    shutil.copy(project / "photos/test/00000.jpg", project / "=1+1.jpg")
    (project / "@bad.jpg").write_bytes(b"-")
    done = project.run("ccd", "predict", "-f", "csv", "=1+1.jpg", "@bad.jpg", check=False)
    cells = [line.split(",")[0] for line in done.stdout.splitlines()[1:]]
    assert cells == ["./=1+1.jpg", "./@bad.jpg"]
    assert (project / cells[0]).exists()


@pytest.mark.parametrize("first", "=+-@\t\r")
def test_no_column_and_no_reason_is_a_formula(first: str):
    row = {"image": "a.jpg", "status": "unreadable", "error": f"{first}1"}
    text = as_csv(pd.DataFrame([row | {"labels": [f"{first}dog"], f"{first}dog": 0.5}]))
    assert next(csv.reader([text.splitlines()[0]]))[4].startswith("'")
    assert f"'{first}1" in text
    assert f"'{first}dog," in text


def test_names_cannot_drive_the_terminal(project: Project):
    name = "photos/train/\x1b[2J\x1b]0;owned\x07.jpg"
    (project / name).write_bytes(b"no image")
    done = project.run("ccd", "predict", name, check=False)
    assert "\\x1b[2J" in refusal(done)
    assert "\x1b" not in done.stderr
    gone = project.run("ccd", "predict", name + ".jpg", check=False)
    assert "\\x1b[2J" in refusal(gone, 1, 2)
    (project / "photos/train/a.\x1b[2j").write_bytes(b"-")
    passed_over = project.stage("index").stderr
    assert "\\x1b[2j" in passed_over
    assert "\x1b" not in passed_over


def test_long_foreign_text_loses_its_middle():
    assert (
        clean("a" * 5000 + "\u202egnp.exe\ud800")
        == "a" * 500 + " … " + "a" * (500 - 9) + "\\x202egnp.exe\\xd800"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\n"
         "c: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c]\n"
         "seed: [*d, *d, *d, *d, *d, *d, *d, *d]\n", "`seed` is"),
        ("[" * 5000, "params.yaml"),
        ("seed: \x00", "is not valid YAML"),
    ],
)  # fmt: skip
def test_yaml_that_grows_is_refused_in_few_words(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    said = said_of(lambda: parse_params(read_yaml(path)))
    assert expected in said
    assert len(said) < 10_000


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train__epochs", "5", "`train.epochs` is '5'"),
        ("bias__debias", "yes", "`bias.debias` is 'yes'"),
        ("class_text__templates", [{"a photo": "{}"}], "for YAML a dict: put it in quotes"),
    ],
)
def test_a_value_of_another_kind_is_refused(tmp_path: Path, key: str, value, expected: str):
    section, _, name = key.partition("__")
    raw = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
    raw[section][name] = value
    assert expected in said_of(parse_params, raw)


def test_a_key_that_no_stage_has_is_an_error_of_dvc_repro_too(project: Project):
    path = project / "params.yaml"
    path.write_text(path.read_text() + "seeds: 1\n")
    done = project.run("dvc", "repro", check=False)
    assert done.returncode
    assert "`seeds` is no parameter; did you mean `seed`?" in done.stderr


@pytest.mark.parametrize("key", ["source.root", "source.classes", "source.labels"])
def test_a_file_that_is_not_there_is_named_with_its_parameter(project: Project, key: str):
    project.set(**{key.replace(".", "__"): "elsewhere/it"})
    done = project.run("dvc", "repro", check=False)
    assert f"check: {key} in params.yaml: elsewhere/it is not there" in done.stderr


def test_a_file_that_dvc_knows_of_is_left_to_dvc(project: Project):
    """As with `dvc repro --allow-missing`: by a .dvc file, or as what a stage makes."""
    (project / "elsewhere.dvc").write_text("outs:\n- path: elsewhere\n")
    (project / "made").mkdir()
    stages = {
        "a": {"cmd": "x", "outs": ["photos2"]},
        "b": {"foreach": [1], "do": {"outs": ["photos3"]}},
    }
    YAML().dump({"stages": stages}, project / "made/dvc.yaml")
    (project / "photos/dvc.yaml").write_text("")
    for root in ("elsewhere", "elsewhere/below", "made/photos2", "made/photos3"):
        project.set(source__root=root)
        project.stage("check")


def test_a_stage_takes_no_arguments_and_does_not_run_for_them(project: Project):
    project.set(bias__debias=False)
    before = (project / "data/bias.parquet").read_bytes()
    shown = project.run("python", "-m", "stages.bias", "--help")
    assert "bias takes no arguments" in shown.stdout
    assert project.run("python", "-m", "stages.bias", "--forse", check=False).returncode == 2
    assert (project / "data/bias.parquet").read_bytes() == before


@pytest.mark.parametrize(("here", "there"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_that_differ_in_how_accents_are_written_are_named(
    project: Project, here: Form, there: Form
):
    photo = project / "photos/test/00000.jpg"
    photo.rename(photo.with_name(unicodedata.normalize(here, "é.jpg")))
    truth, named = project / "truth.csv", unicodedata.normalize(there, "é.jpg")
    truth.write_text(truth.read_text().replace("test/00000.jpg", f"test/{named}"))
    project.stage("index")
    done = project.stage("ground_truth")
    assert "1 labelled images are not in the index, and left out" in done.stderr
    assert (
        f"'test/{named}' differs from an image's id only in how accents are written" in done.stderr
    )


def test_labelled_images_without_a_positive_are_not_called_unlabelled(project: Project):
    lines = (project / "truth.csv").read_text().splitlines()
    kept = [lines[0], *(line.split(",")[0] + ",0,0,0,0" for line in lines[1:])]
    (project / "truth.csv").write_text("\n".join(kept) + "\n")
    done = project.run("dvc", "repro", "evaluate")
    assert "no class is on some of the labelled test images and not on others" in done.stderr


@pytest.mark.parametrize(("name", "value"), [("CCD_WORKERS", "-1"), ("CCD_BLOCK", "0")])
def test_a_number_of_the_machine_that_is_too_small_says_what_may_be(
    project: Project, name: str, value: str
):
    said = refusal(project.stage("global_clip", check=False, **{name: value}))
    assert f"{name}={value}" in said
    assert "at least" in said


def test_a_folder_without_permission_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The tests may run as root, who may read anything."""
    scandir = os.scandir

    def forbidding(folder: bytes) -> object:
        if folder.endswith(b"locked"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    (tmp_path / "photos/locked").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", forbidding)
    [found] = photographs("folder", str(tmp_path / "photos"), "")
    assert found.image_id == "locked"
    assert inspect(Path(found.path), 9).status == "unreadable"


def test_git_that_fails_for_another_reason_does_not_end_the_comparison_of_branches(tmp_path: Path):
    """The Makefile tells DVC to do without git only where there is none."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".dvc").mkdir()
    make = Project(tmp_path, dict(os.environ))
    make.run("make", ".dvc/config.local")
    assert "no_scm" in (tmp_path / ".dvc/config.local").read_text()
    (tmp_path / ".dvc/config.local").unlink()
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")
    done = make.run("make", ".dvc/config.local", check=False)
    assert done.returncode
    assert not (tmp_path / ".dvc/config.local").exists()
    assert "not a git repository: /nowhere" in done.stdout + done.stderr


def test_the_project_that_was_laid_out_is_valid(project: Project, tmp_path: Path):
    """The oracle of these tests: what they break was whole."""
    write_photos(tmp_path / "photos", 2, 1)
    assert not project.repro()
