"""Ready parameters, and how to get a published data set: what people do before `dvc repro`."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path

import pytest
from PIL import Image
from ruamel.yaml import YAML
from typer.testing import CliRunner

from stages.command import cli, fetch
from stages.command.cli import app
from stages.command.fetch import Archive
from stages.command.preset import names, preset
from stages.runtime.code import ROOT
from stages.runtime.errors import UserError
from stages.runtime.params_file import parse_params
from stages.sources.class_list import class_list
from tests.declarations import leaves

DATASETS, RECIPES = names()


def content(dataset: str, recipe: str) -> dict:
    return YAML(typ="safe").load(preset(dataset, recipe))


@pytest.mark.parametrize(
    ("dataset", "recipe"), [*product(sorted(set(DATASETS) - {"demo"}), RECIPES), ("demo", None)]
)
def test_every_preset_is_valid_and_explains_every_parameter(dataset: str, recipe: str | None):
    text = preset(dataset, recipe)
    params = parse_params(YAML(typ="safe").load(text), Path(dataset))
    if dataset not in ("demo", "folder", "photographs"):  # whose names are not part of the project
        assert len(class_list(str(ROOT / params.source.classes))) in (20, 80, 81)
    section, explained = "", set()
    for line in text.splitlines():
        name = line.strip().partition(":")[0]
        if line.endswith(":") and not line.startswith(" "):
            section = f"{name}."
        elif "#" in line:
            explained.add(section + name)
    assert leaves() <= explained


def test_the_projects_own_parameters_are_the_demos_preset():
    assert preset("demo") == (ROOT / "params.yaml").read_text()


def test_a_recipe_says_what_it_does_otherwise_and_nothing_else():
    known = YAML(typ="safe").load(ROOT / "stages/command/recipes.yaml")
    for name, recipe in known["recipes"].items():
        for section, values in recipe.items():
            for key, value in values.items():
                assert value != known["common"][section][key], f"{name}: {section}.{key}"


def test_a_recipe_leaves_nothing_of_the_demo_but_what_is_no_part_of_the_method():
    """Or the demo's own settings would be taken for the paper's."""
    known = YAML(typ="safe").load(ROOT / "stages/command/recipes.yaml")
    own = {"seed", "source.answers", "source.max_pixels", "source.max_bad_share"}
    own |= {"report.gallery", "report.samples", "thresholds.precision"}
    for recipe in known["recipes"].values():
        for dataset in known["datasets"].values():
            laid = (known["common"], recipe, dataset)
            given = {f"{s}.{k}" for part in laid for s, v in part.items() for k in v}
            assert leaves() - given == own | {"source.difficult"}
    defaults = content("folder", "recommended")
    assert defaults["source"]["difficult"] == "negative"
    assert preset("folder") == preset("folder", "recommended")
    assert "lr: 1.0e-5 " in preset("folder")


def test_the_recipes_differ_where_paper_and_script_do():
    paper, official = content("voc12", "paper"), content("voc12", "official")
    figures = {
        ("student", "arch"): ("resnet101", "resnet50"),
        ("student", "boost"): (1.0, 3.0),
        ("teacher", "normalisation"): ("own", "imagenet"),
        ("bias", "entropy_limit"): (0.5, 2.0),
        ("bias", "entropy_unit"): ("normalised", "nats"),
        ("cam_boxes", "selection"): ("quantile", "search"),
        ("cam_boxes", "mean_views"): (10.0, 5.0),
        ("cam_boxes", "box"): ("tight", "first_last"),
        ("fuse_labels", "alpha"): (0.4, 0.2),
        ("fuse_labels", "no_view"): ("keep", "zeros"),
        ("train", "stop"): ("first_local_minimum", "published"),
    }
    for (section, key), expected in figures.items():
        assert (paper[section][key], official[section][key]) == expected, (section, key)
    for recipe in (paper, official):
        assert recipe["teacher"]["model"] == "RN50x64-quickgelu"
        assert recipe["global_clip"]["view_size"] == recipe["local_clip"]["view_size"] == 640
        assert recipe["optimiser"] == {
            "batch": 16, "epoch_steps": 0, "lr": 1e-5, "head_lr_factor": 10.0,
            "held_out": 0.0,
        }  # fmt: skip
        assert recipe["warmup"]["epochs"] + recipe["train"]["epochs"] == 10


def test_only_this_projects_own_recipes_fit_heads():
    heads = {
        recipe: tuple(content("voc12", recipe)[stage]["head"] for stage in ("warmup", "train"))
        for recipe in ("paper", "official", "recommended", "instant")
    }
    published = ("gradient", "gradient")
    assert heads["paper"] == heads["official"] == published
    assert heads["recommended"] == ("gradient", "closed_form")
    assert heads["instant"] == ("closed_form", "closed_form")


@pytest.mark.parametrize("dataset", [name for name in DATASETS if name != "demo"])
def test_the_recipe_instant_trains_nothing_whatever_the_data_set(dataset: str):
    of = content(dataset, "instant")
    assert of["warmup"]["epochs"] == of["train"]["epochs"] == 0
    assert of["student"]["boost"] == 1
    assert (of["cam_boxes"]["views"], of["cam_boxes"]["mean_views"]) == ("windows", 13)


def test_nuswide_has_prompts_of_its_own():
    assert content("nuswide", "paper")["class_text"]["templates"] == ["a photo of a {}"]
    assert content("coco", "paper")["class_text"]["templates"] == ["a photo of the {}"]


def test_the_command_prints_a_preset_over_the_file_it_replaces(tmp_path: Path):
    """The shell empties params.yaml before the command starts."""
    (tmp_path / "params.yaml").write_text("old")
    ccd = Path(sys.executable).with_name("ccd")
    subprocess.run(
        f"{ccd} preset voc12 --recipe paper > params.yaml", shell=True, cwd=tmp_path, check=True
    )
    assert (tmp_path / "params.yaml").read_text() == preset("voc12", "paper")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["preset", "voc13"], "no preset for 'voc13', but for voc12"),
        (["preset", "demo", "--recipe", "paper"], "the demo has no recipes"),
        (["preset", "voc12", "--recipe", "papre"], "no recipe 'papre', but paper, official"),
        (["fetch", "imagenet"], "nothing is known of 'imagenet', but of voc07"),
    ],
)
def test_an_unknown_name_is_named_with_the_known_ones(arguments: list[str], expected: str):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code != 0
    assert expected in result.output


def test_without_yes_a_fetch_only_says_what_it_would_do(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in fetch.DATA_SETS:
        said = CliRunner().invoke(app, ["fetch", name]).output
        assert ("Nothing was downloaded" in said) == (name != "nuswide")
        assert "licence" in said or "terms" in said or "redistributed" in said
    assert list(tmp_path.iterdir()) == []
    said = CliRunner().invoke(app, ["fetch", "voc07"]).output
    assert "VOCtrainval_06-Nov-2007.tar" in said
    assert "VOCtest_06-Nov-2007.tar" in said
    assert "MD5 b6e924de25625d8de591ea690078ad9f" in said
    assert "no checksum is published" in CliRunner().invoke(app, ["fetch", "coco"]).output


def test_nuswide_is_told_as_it_is():
    said = CliRunner().invoke(app, ["fetch", "nuswide"]).output
    assert "request form" in said
    result = CliRunner().invoke(app, ["fetch", "nuswide", "--yes"])
    assert result.exit_code == 1
    assert "cannot be fetched" in result.output


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the test's folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str) -> Path:
    """VOC 2012 as an archive on a server, and an empty folder to fetch it into."""
    devkit = tmp_path / "made/VOCdevkit/VOC2012"
    (devkit / "ImageSets/Main").mkdir(parents=True)
    (devkit / "ImageSets/Main/val.txt").write_text("2007_000033\n")
    (devkit / "JPEGImages").mkdir()
    Image.new("RGB", (4, 4)).save(devkit / "JPEGImages/2007_000033.jpg")
    archive = tmp_path / "voc.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(tmp_path / "made/VOCdevkit", "VOCdevkit")
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    known = Archive(f"{server}/voc.tar", archive.name, 0.1, md5)
    voc = replace(fetch.DATA_SETS["voc12"], archives=(known,))
    monkeypatch.setitem(fetch.DATA_SETS, "voc12", voc)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return archive


def test_a_data_set_is_fetched_verified_unpacked_and_then_left_alone(published: Path):
    result = CliRunner().invoke(app, ["fetch", "voc12", "--yes"])
    assert result.exit_code == 0, result.output
    assert Path("data/VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg").exists()
    assert "voc12 is complete" in result.output
    assert not Path("data/.downloads/voc12").exists()
    published.unlink()
    assert "is there already" in CliRunner().invoke(app, ["fetch", "voc12", "--yes"]).output


def test_an_archive_of_another_digest_is_not_unpacked(published: Path):
    with published.open("ab") as file:
        file.write(b"\0" * 512)
    result = CliRunner().invoke(app, ["fetch", "voc12", "--yes"])
    assert result.exit_code == 1
    assert "File not found or corrupted" in result.output
    assert not Path("data/VOCdevkit").exists()


def test_a_fetch_that_was_cut_off_starts_that_archive_again(published: Path):
    cut_off = Path("data/.downloads/voc12/voc.tar.partial")
    cut_off.parent.mkdir(parents=True)
    cut_off.write_bytes(published.read_bytes()[:100])
    assert CliRunner().invoke(app, ["fetch", "voc12", "--yes"]).exit_code == 0


def test_what_was_not_unpacked_whole_is_unpacked_again(published: Path):
    """Enough is there to look complete, and the archive is still beside it."""
    Path("data/VOCdevkit/VOC2012/JPEGImages").mkdir(parents=True)
    Path("data/VOCdevkit/VOC2012/ImageSets/Main").mkdir(parents=True)
    Path("data/VOCdevkit/VOC2012/ImageSets/Main/val.txt").write_text("")
    Path("data/.downloads/voc12").mkdir(parents=True)
    Path("data/.downloads/voc12/voc.tar").write_bytes(published.read_bytes())
    published.unlink()
    assert CliRunner().invoke(app, ["fetch", "voc12", "--yes"]).exit_code == 0
    assert Path("data/VOCdevkit/VOC2012/JPEGImages/2007_000033.jpg").exists()


def test_an_archive_that_climbs_out_is_not_unpacked(
    published: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    evil = tmp_path / "evil.tar"
    (tmp_path / "payload").write_text("x")
    with tarfile.open(evil, "w") as tar:
        tar.add(tmp_path / "payload", "../../climbed")
    known = Archive(f"{server}/evil.tar", evil.name, 0.1, None)
    voc = replace(fetch.DATA_SETS["voc12"], archives=(known,))
    monkeypatch.setitem(fetch.DATA_SETS, "voc12", voc)
    with pytest.raises(UserError, match="cannot be unpacked"):
        fetch.fetch("voc12", print)
    assert not (tmp_path / "climbed").exists()


def test_a_zip_without_a_checksum_has_its_digest_said(
    published: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    made = tmp_path / "coco.zip"
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("train2014/a.jpg", b"x")
        archive.writestr("val2014/b.jpg", b"x")
        archive.writestr("annotations/instances_train2014.json", "{}")
    known = Archive(f"{server}/coco.zip", made.name, 0.1, None)
    coco = replace(fetch.DATA_SETS["coco"], archives=(known,))
    monkeypatch.setitem(fetch.DATA_SETS, "coco", coco)
    said: list[str] = []
    fetch.fetch("coco", said.append)
    assert said[0] == f"coco.zip: SHA-256 {hashlib.sha256(made.read_bytes()).hexdigest()}"
    assert Path("data/coco/train2014/a.jpg").exists()


def test_a_server_that_is_not_there_is_one_line(published: Path):
    published.unlink()
    result = CliRunner().invoke(app, ["fetch", "voc12", "--yes"])
    assert result.exit_code == 1
    assert "ccd: http://127.0.0.1" in result.output
    assert "404" in result.output
    assert "Traceback" not in result.output


def test_the_command_knows_the_data_sets_that_there_are():
    """Its own list lets it refuse another name before torchvision is imported."""
    assert tuple(fetch.DATA_SETS) == cli.PUBLISHED
