"""The methods that CCD is compared with run on the pipeline's artifacts, and go on after a stop."""

from __future__ import annotations

import copy
import json
import re
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import load_file

from experiments import ablate, clone, table1, training_free
from experiments.ablations import DIVIDED, Ablation, ablations
from experiments.cdul import Aligned
from experiments.clone import link, prepare, seed_list, show_experiments, uncommitted
from experiments.figures import alike
from experiments.methods import METHODS, Acknowledged, Role
from experiments.settings import Baseline, Cdul
from experiments.system import SYSTEMS
from experiments.table1 import CCD, LEVELS, summary
from stages.command.preset import preset
from stages.method.average_precision import mean_average_precision
from stages.method.labelling import zeroshot
from stages.runtime.code import ROOT
from stages.runtime.params import Params
from stages.runtime.params_file import parse_params, read_yaml
from stages.sources.class_list import class_list
from stages.storage.provenance import parts_of
from tests.conftest import MINI_CLASSES, Project, edit_params, wait_for

PARAMS = parse_params(read_yaml(ROOT / "params.yaml"))
ABLATIONS: dict[str, Ablation] = ablations(PARAMS)
EXPERIMENTS: dict[str, Any] = YAML(typ="safe").load(ROOT / "experiments/dvc.yaml")["stages"]


@pytest.fixture
def comparing(project: Project) -> Project:
    """A finished project, with the experiments."""
    with_experiments(project)
    return project


def with_experiments(project: Project) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "experiments", project / "experiments", ignore=ignore)


def test_the_methods_of_the_matrix_are_those_there_are():
    assert EXPERIMENTS["baseline"]["matrix"]["method"] == list(METHODS)


def test_cdul_trains_on_the_mean_of_whole_image_and_tiles(comparing: Project):
    comparing.set(cam_boxes__views="grid", cam_boxes__mean_views=9.0, train__epochs=3)
    comparing.repro("fuse_labels")
    comparing.run("python", "-m", "experiments.cdul")
    found = json.loads((comparing / "results/table1/cdul.json").read_text())
    index = pd.read_parquet(comparing / "data/index.parquet").query("split == 'train'")
    whole = pd.read_parquet(comparing / "data/global_scores.parquet").set_index("image_id")
    tiles = pd.read_parquet(comparing / "data/local_scores.parquet")
    truth = pd.read_csv(comparing / "truth.csv").set_index("image_id")
    labels, known = [], []
    for image in index["image_id"][index["status"] == "ok"]:
        own = tiles[tiles["image_id"] == image]
        assert len(own) == 9
        best = [own[c].max() if own[c].max() >= 0.2 else own[c].min() for c in MINI_CLASSES]
        labels.append((whole.loc[image, MINI_CLASSES].to_numpy(float) + best) / 2)
        known.append(truth.loc[image, MINI_CLASSES].to_numpy(float))
    quality = 100 * mean_average_precision(np.array(known), np.array(labels))
    assert found["label_mAP"][0] == pytest.approx(quality, abs=0.01)
    assert len(found["label_mAP"]) == 5
    assert found["label_mAP"][0] == found["label_mAP"][1]  # it waits for the second epoch
    assert 0 < found["mAP"] <= 100


def test_cduls_labels_move_towards_the_predictions_after_it_has_waited():
    settings = Cdul(threshold=0.2, difference=0, wait=2, width=1, boost=1)
    labels = torch.tensor([[0.1, 0.9], [0.5, 0.4]])
    objective = Aligned(labels, np.array([[0.0, 1.0], [1.0, 0.0]]), settings, epochs=2)
    predicted = torch.full((2, 2), 3.0)
    objective.end_epoch(predicted, 1)
    assert torch.equal(objective.moved, labels)
    objective.end_epoch(predicted, 2)
    assert (objective.moved > labels).all()
    assert objective.quality.tolist() == [1, 1, 1]


def test_cdul_refuses_views_that_are_no_tiles(comparing: Project):
    done = comparing.run("python", "-m", "experiments.cdul", check=False)
    assert done.returncode == 1
    assert "cam_boxes.views to grid" in done.stderr


@pytest.mark.parametrize(("clip", "known"), [("top", 1), ("soft", 4)])
def test_what_clips_labels_tell_is_a_choice(comparing: Project, clip: str, known: int):
    edit_params(comparing / "experiments/params.yaml", {"baseline.clip": clip})
    comparing.run("python", "-m", "experiments.baseline", "clip_an")
    found = json.loads((comparing / "results/table1/clip_an.json").read_text())
    assert found["observed_per_image"] == known


@pytest.mark.parametrize("method", ["bce", "bce_ls", "asl"])
def test_an_unjudged_label_teaches_a_fully_supervised_method_nothing(method: str):
    settings = Baseline(
        share=0.1, clip="top", count=1, threshold=0.5, unlikely=0.5, expected=1, boost=5
    )
    observed = torch.tensor([[1, -1, 0], [0, 1, -1]])
    logits = torch.zeros(2, 3, requires_grad=True)
    METHODS[method].objective(observed, settings, 0)(logits, [0, 1], 1).backward()
    assert ((logits.grad != 0) == (observed != 0)).all()


def test_without_training_whole_image_views_and_tiles_are_scored(comparing: Project):
    comparing.run("python", "-m", "experiments.training_free")
    found = json.loads((comparing / "results/table1/training_free.json").read_text())
    metrics = json.loads((comparing / "results/metrics.json").read_text())
    assert found["softmax"]["mAP"] == metrics["teacher_mAP"]
    assert set(found) == set(table1.TRAINING_FREE)
    assert found["tiles_softmax"] != found["softmax"]


def test_tiles_count_by_the_best_of_them(monkeypatch):
    monkeypatch.setattr(training_free, "parts_of", partial(parts_of, size=3))
    rng = np.random.default_rng(0)
    unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (
        rng.normal(size=(4, 6)), rng.normal(size=(4, 9, 6)), rng.normal(size=(3, 6))
    )]  # fmt: skip
    whole, tiles, text = unit
    clip = zeroshot(PARAMS.labels, text, learned=0.5)
    kinds = {"softmax": clip.probabilities, "cosine": clip.similarities}
    found = training_free.scorers(kinds, whole, tiles)
    for i in range(4):
        for c in range(3):
            best = max(tiles[i, j] @ text[c] for j in range(9))
            assert found["tiles_cosine"][i, c] == pytest.approx((whole[i] @ text[c] + best) / 2)
            p = [np.exp(v @ text.T / 0.5) / np.exp(v @ text.T / 0.5).sum() for v in tiles[i]]
            own = np.exp(whole[i] @ text.T / 0.5) / np.exp(whole[i] @ text.T / 0.5).sum()
            wanted = (own[c] + max(q[c] for q in p)) / 2
            assert found["tiles_softmax"][i, c] == pytest.approx(wanted, rel=1e-5)


def test_standardised_scores_of_the_pool_have_no_mean_and_one_deviation():
    rng = np.random.default_rng(0)
    text, views = rng.normal(size=(4, 6)), rng.normal(3, 1, size=(90, 6))
    score = training_free.standardised(lambda v: v @ text.T, views @ text.T)
    assert score(views).mean(axis=0) == pytest.approx(0, abs=1e-9)
    assert score(views).std(axis=0) == pytest.approx(1)
    assert score(views[:1]) == pytest.approx(score(views)[:1])  # one image alone, too


def test_a_discriminant_finds_the_class_that_soft_labels_are_of():
    rng = np.random.default_rng(0)
    views = rng.normal(size=(400, 5)).astype(np.float32)
    p = 1 / (1 + np.exp(-3 * views[:, :2]))
    said = training_free.discriminant(views, p)(rng.normal(size=(50, 5)).astype(np.float32))
    assert said.shape == (50, 2)
    assert ((said > 0) & (said < 1)).all()
    fresh = rng.normal(size=(50, 5)).astype(np.float32)
    order = np.argsort(training_free.discriminant(views, p)(fresh)[:, 1])
    assert np.corrcoef(np.argsort(order), np.argsort(np.argsort(fresh[:, 1])))[0, 1] > 0.95


@pytest.mark.parametrize("dataset", ["demo", "voc12", "folder"])
@pytest.mark.parametrize("recipe", ["paper", "official", "recommended"])
def test_every_row_of_an_ablation_is_a_valid_set_of_parameters(dataset: str, recipe: str):
    content = YAML(typ="safe").load(preset(dataset, None if dataset == "demo" else recipe))
    for ablation in ablations(parse_params(content)).values():
        for changes in ablation.rows.values():
            assert changed(changes, content)


@pytest.mark.parametrize("dataset", ["demo", "voc12", "photographs"])
def test_no_two_rows_of_an_ablation_are_one_run(dataset: str):
    content = YAML(typ="safe").load(preset(dataset))
    for name, ablation in ablations(parse_params(content), dataset).items():
        if not ablation.axis and name != "ambiguous":  # whose world is not among these parameters
            runs = [repr(changed(changes, content)) for changes in ablation.rows.values()]
            assert len(set(runs)) == len(runs), name


def test_a_world_is_the_demos_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(clone, "CLONE", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "params.yaml").write_text("source: {root: photos}\n")
    subprocess.run(["git", "add", "params.yaml"], cwd=tmp_path, check=True)
    with pytest.raises(SystemExit, match=r"world.lenders: of the demo's world alone"):
        clone.reproduce(0, {"world.lenders": True})


def test_the_row_of_another_recipe_makes_that_recipe_of_the_recommended_one():
    content = YAML(typ="safe").load(preset("photographs"))
    row = ablations(parse_params(content), "photographs")["recipes"].rows["paper"]
    assert row["train.head"] == "gradient"
    assert row["bias.debias"] is True
    found = changed(row, content)
    assert found == parse_params(YAML(typ="safe").load(preset("photographs", "paper")))
    demo = parse_params(YAML(typ="safe").load(preset("demo")))
    assert ablations(demo, "demo")["recipes"] == ablations(demo)["recipes"]


def test_rows_that_are_multiples_are_of_what_is_committed():
    found = ablations(
        changed(
            {"cam_boxes.mean_views": 10.0, "labels.temperature": 0.01, "train.epochs": 8},
        )
    )
    assert list(found["figure6a"].rows) == ["4.0", "7.0", "10.0", "14.0", "18.0"]
    temperatures = [c["labels.temperature"] for c in found["extensions"].rows.values()
                    if "labels.temperature" in c]  # fmt: skip
    assert temperatures == [0.005, 0.02]
    longer = found["extensions"].rows["as many epochs, one update"]
    assert longer["train.epochs"] == 16


@pytest.mark.parametrize("recipe", ["paper", "official", "recommended"])
def test_a_recipe_of_table_1_changes_what_recipes_differ_in(recipe: str):
    params = changed(table1.recipes()[recipe])
    assert params.student.arch == "teacher_tower"
    assert params.teacher.normalisation == ("imagenet" if recipe == "official" else "own")
    assert (params.fuse_labels.no_view == "zeros") == (recipe == "official")


def changed(changes: dict[str, Any], base: Any = None) -> Params:
    content = copy.deepcopy(base or read_yaml(ROOT / "params.yaml"))
    for key, value in changes.items():
        section, name = key.split(".")
        if section == "world":
            assert name in read_yaml(ROOT / "demo/params.yaml")[section]
            continue
        assert name in content[section]
        content[section][name] = value
    return parse_params(content)


def write_labels(run: Path) -> None:
    (run / "data").mkdir(exist_ok=True)
    labels = pd.DataFrame({"image_id": ["a", "b"], "cat": [0.5, 1.0], "dog": [0.25, 1.0]})
    labels.to_parquet(run / "data/pseudo_labels.parquet")
    (run / "params.yaml").write_text("train: {sharpness: 1.0}")


@pytest.fixture
def few_runs(tmp_path, monkeypatch) -> list[tuple[int, dict[str, Any]]]:
    """An ablation's runs, as they were asked for; each ends in figures that tell it apart."""
    runs: list[tuple[int, dict[str, Any]]] = []

    def reproduce(seed: int, changes: dict[str, Any], *targets: str) -> Path:
        runs.append((seed, changes))
        results = tmp_path / "clone/results"
        results.mkdir(parents=True, exist_ok=True)
        figures = dict.fromkeys(("teacher_mAP", "warmup_mAP"), 50.0) | {
            "mAP": 60.0 + len(runs),
            "label_mAP": {"initial": 51.0, "local": 52.0, "pseudo": 53.0},
            "diagnostics": {"views_per_image": 5.0},
        }
        (results / "metrics.json").write_text(json.dumps(figures))
        classes = pd.DataFrame({"class": ["cup", "key"], "bias": [0.9, 0.5]})
        classes["teacher_AP"] = classes["student_AP"] = 70.0 + len(runs)
        classes.to_csv(results / "per_class.csv", index=False)
        write_labels(tmp_path / "clone")
        return tmp_path / "clone"

    monkeypatch.setattr(ablate, "prepare", lambda *_: PARAMS)
    monkeypatch.setattr(ablate, "must_be_judged", lambda seed: None)
    monkeypatch.setattr(ablate, "reproduce", reproduce)
    monkeypatch.setattr(ablate, "RESULTS", tmp_path)
    return runs


def test_a_second_update_goes_on_from_the_first_ones_student(few_runs, tmp_path):
    trained = tmp_path / "clone/data/classifier"
    trained.mkdir(parents=True)
    (trained / "student.json").write_text("first")
    ablate.main("extensions", "3")
    assert few_runs[0] == (3, DIVIDED | {"train.stop": "last_epoch"})
    [again] = [c for _, c in few_runs if c.get("student.weights") == "classifier"]
    kept = tmp_path / "clone" / again["student.checkpoint"]
    assert (kept / "student.json").read_text() == "first"


@pytest.mark.parametrize("name", ["table2", "figure6b"])
def test_an_ablation_is_a_line_a_row_and_seed_and_a_chart(name: str, few_runs, tmp_path, capsys):
    ablate.main(name, "4,7")
    rows = ABLATIONS[name].rows
    assert few_runs == [(seed, changes) for seed in (4, 7) for changes in rows.values()]
    lines = pd.read_csv(tmp_path / f"{name}.csv", dtype={"row": str})
    assert lines[["row", "seed"]].to_numpy().tolist() == [[r, s] for s in (4, 7) for r in rows]
    assert lines["mAP"].tolist() == [60.0 + n for n in range(1, 2 * len(rows) + 1)]
    assert (tmp_path / f"{name}.svg").read_text().startswith("<svg")
    said = capsys.readouterr().out
    assert f"{61 + len(rows) / 2:.1f}" in said  # the first row's mean


def test_a_run_whose_training_images_have_no_labels_has_no_column_for_them(tmp_path):
    figures = {"mAP": 60.0, "teacher_mAP": 50.0, "warmup_mAP": 55.0}
    figures |= {"diagnostics": {"views_per_image": 5.0}}
    (tmp_path / "results").mkdir()
    (tmp_path / "results/metrics.json").write_text(json.dumps(figures))
    write_labels(tmp_path)
    line = ablate.of_run(tmp_path)
    columns = ["teacher_mAP", "warmup_mAP", "mAP", "views_per_image", "labels_per_image"]
    assert line.columns.tolist() == columns
    assert line["labels_per_image"].tolist() == [1.38]
    (tmp_path / "params.yaml").write_text("train: {sharpness: 2.0}")
    assert ablate.of_run(tmp_path)["labels_per_image"].tolist() == [1.16]


def test_classes_are_compared_from_the_most_biased_on(few_runs, tmp_path, capsys):
    ablate.main("tables3to5", "0")
    table = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split() for line in table] == [
        ["key", "0.5", "71.0", "72.0", "1.0"],
        ["cup", "0.9", "71.0", "72.0", "1.0"],
    ]
    assert (tmp_path / "tables3to5.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("kind", "classes", "means"),
    [("voc2012", "voc", [88.8, 90.1]), ("coco2014", "coco", [67.7, 70.3])],
)
def test_classes_of_a_published_data_set_have_its_figures_beside(kind, classes, means):
    names = list(class_list(str(ROOT / f"stages/sources/classes/{classes}.txt")))
    ablation = ABLATIONS["tables3to5"]
    lines = pd.concat(
        pd.DataFrame({"row": row, "seed": 0, "class": names, "bias": 0.5, "student_AP": 60.0})
        for row in ablation.rows
    )
    table = ablate.summary(lines, ablation, kind).filter(like="published")
    assert table.columns.tolist() == [f"published, {row}" for row in ablation.rows]
    assert len(table) == len(names)
    assert table.mean().tolist() == pytest.approx(means, abs=0.1)
    for other in ("voc2007", "folder"):  # VOC's classes, but other photographs
        assert ablate.summary(lines, ablation, other).filter(like="published").empty


def test_table_1_is_a_line_a_method_and_seed_and_cduls_labels(tmp_path, monkeypatch, capsys):
    asked = []

    def reproduce(seed: int, changes: Any, *targets: str, settings: Any = None) -> Path:
        asked.append((seed, targets))
        results = tmp_path / "results/table1"
        results.mkdir(parents=True, exist_ok=True)
        judged = {"mAP": 40.0 + seed, "common": 30.0, "micro_AP": 20.0}
        for name in [*METHODS, *SYSTEMS, "tailorclip"]:
            (results / f"{name}.json").write_text(json.dumps(judged))
        cdul = {"mAP": 50.0, "micro_AP": 20.0, "label_mAP": [40.0, seed]}
        (results / "cdul.json").write_text(json.dumps(cdul))
        for name, rows in table1.UNTRAINED.items():
            (results / f"{name}.json").write_text(json.dumps(dict.fromkeys(rows, judged)))
        metrics = {"mAP": 60.0, "micro_AP": 61.0}
        (tmp_path / "results/metrics.json").write_text(json.dumps(metrics))
        classes = pd.DataFrame({"test_positives": [9, 8, 20], "student_AP": [50.0, 1.0, 60.0]})
        classes.to_csv(tmp_path / "results/per_class.csv", index=False)
        return tmp_path

    monkeypatch.setattr(table1, "prepare", lambda preset: PARAMS)
    monkeypatch.setattr(table1, "must_be_judged", lambda seed: None)
    monkeypatch.setattr(table1, "reproduce", reproduce)
    monkeypatch.setattr(table1, "RESULTS", tmp_path)
    table1.main("3,4", preset="photographs")
    lines = pd.read_csv(tmp_path / "photographs/table1.csv")
    rows = len(METHODS) + len(SYSTEMS) + len(table1.CDULS) + 1 + 10 + 4 + 5
    assert lines["seed"].value_counts().to_dict() == dict.fromkeys((3, 4), rows)
    assert not lines.duplicated(["level", "method", "seed"]).any()
    assert lines.loc[lines["method"] == "WAN + BoostLU", "mAP"].tolist() == [43.0, 44.0]
    assert lines.loc[lines["method"] == "CCD", "common"].tolist() == [55.0, 55.0]
    assert lines.loc[lines["method"] == "CDUL", "common"].isna().all()
    labels = pd.read_csv(tmp_path / "photographs/table1_cdul_labels.csv").set_index("row")
    assert labels.loc["CDUL"].to_numpy().tolist() == [[3, 0, 40], [3, 1, 3], [4, 0, 40], [4, 1, 4]]
    assert lines["method"].str.startswith("CDUL").sum() == 8
    assert (tmp_path / "photographs/table1.svg").read_text().startswith("<svg")
    assert "G2NetPL, approximate" in capsys.readouterr().out
    assert {seed for seed, _ in asked} == {3, 4}


def test_figures_are_drawn_from_what_the_pipeline_left(comparing: Project):
    comparing.run("python", "-m", "experiments.figures")
    results = comparing / "results"
    for name in ("figure2d", "figure10", "figure8"):
        assert (results / f"{name}.svg").read_text().startswith("<svg")
    shares = pd.read_csv(results / "figure10.csv")
    assert shares.groupby("source")["share"].sum().to_numpy() == pytest.approx(
        1, abs=0.5e-4 * len(MINI_CLASSES)
    )
    truth = pd.read_csv(comparing / "truth.csv").set_index("image_id")
    boxes = pd.read_parquet(comparing / "data/cam_boxes.parquet")
    for line in pd.read_csv(results / "figure11.csv").to_dict("records"):
        asked = boxes.loc[boxes["image_id"] == line["image_id"], "class"]
        assert line["right"] == pytest.approx(truth.loc[line["image_id"], asked].mean(), abs=1e-4)
    assert Image.open(results / "figure11.jpg").height == 3 * 166


def test_examples_are_what_the_teacher_says_of_patches_and_photographs(comparing: Project):
    comparing.run("python", "-m", "experiments.examples")
    results = comparing / "results"
    truth = pd.read_csv(comparing / "truth.csv").set_index("image_id")
    scores = pd.read_parquet(comparing / "data/global_scores.parquet").set_index("image_id")
    lines = pd.read_csv(results / "figure1.csv")
    assert lines["patches"].tolist() == [1, 4, 9, 16]
    shown, both = lines["image_id"].iloc[0], lines[["one", "other"]].iloc[0].tolist()
    assert truth.loc[shown].sum() == 2
    assert truth.loc[shown, both].tolist() == [1, 1]
    assert (lines["mean"] > 0).all()
    assert Image.open(results / "figure1.jpg").width == 4 * 166
    for line in pd.read_csv(results / "figure2abc.csv").to_dict("records"):
        own = scores.loc[line["image_id"], MINI_CLASSES].sort_values(ascending=False)
        assert list(own.index[:2]) == [line["class"], line["runner_up"]]
        found = [line["probability"], line["its_probability"]]
        assert found == pytest.approx(own.iloc[:2].tolist(), abs=1e-3)
        assert truth.loc[line["image_id"]].sum() == truth.loc[line["image_id"], line["class"]] == 1


def test_figures_of_maps_need_maps(comparing: Project):
    comparing.set(cam_boxes__views="grid", cam_boxes__mean_views=4.0)
    comparing.repro("fuse_labels")
    done = comparing.run("python", "-m", "experiments.figures", check=False)
    assert done.returncode == 1
    assert "cam_boxes.views" in done.stderr
    assert (comparing / "results/figure10.csv").exists()


def test_maps_of_two_classes_are_as_alike_as_their_correlation():
    rng = np.random.default_rng(0)
    image, of_class = np.repeat(np.arange(12), 2), np.tile([0, 2], 12)
    maps = rng.random((24, 3, 4))
    known = rng.random((12, 3)) < 0.6
    [found] = alike(image, of_class, maps, known).to_dict("records")
    pairs = [np.corrcoef(maps[2 * i].ravel(), maps[2 * i + 1].ravel())[0, 1] for i in range(12)]
    assert found["similarity"] == pytest.approx(np.mean(pairs), abs=1e-4)
    both, either = (known[:, 0] & known[:, 2]).sum(), (known[:, 0] | known[:, 2]).sum()
    assert found["together"] == pytest.approx(both / either, abs=1e-4)
    assert (found["one"], found["other"], found["images"]) == (0, 2, 12)


def test_seeds_are_numbers_by_comma():
    assert seed_list("0,12") == [0, 12]
    with pytest.raises(typer.BadParameter, match="numbers by comma"):
        seed_list("three")


def test_a_misspelt_setting_is_named(comparing: Project):
    path = comparing / "experiments/params.yaml"
    path.write_text(path.read_text().replace("  width:", "  widht:"))
    done = comparing.run("python", "-m", "experiments.cdul", check=False)
    assert done.returncode == 1
    assert "experiments/params.yaml: `cdul.widht` is no parameter; did you mean" in done.stderr


@pytest.mark.parametrize("method", METHODS)
def test_every_objective_has_a_finite_loss_of_which_all_logits_learn(method: str):
    settings = Baseline(
        share=0.1, clip="top", count=1, threshold=0.5, unlikely=0.5, expected=1, boost=5
    )
    observed = torch.tensor([[1, -1, -1, 1], [-1, 1, -1, -1]])
    objective = METHODS[method].objective(observed, settings, 0)
    for epoch in (1, 2):
        logits = torch.randn(2, 4, requires_grad=True)
        loss = objective(logits, [0, 1], epoch)
        loss.backward()
        assert torch.isfinite(loss)
        assert (logits.grad != 0).any()
        objective.end_epoch(logits.detach(), epoch)


def test_em_takes_the_least_likely_labels_for_absent_more_every_epoch():
    observed = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]])
    objective = Acknowledged(observed, wait=2, share=0.3)
    first = torch.tensor([[-9.0, -3.0, 2.0, 1.0], [0.0, -8.0, -1.0, 3.0]])
    objective.end_epoch(first, 1)
    assert objective.absent.isnan().all()
    objective.end_epoch(first, 2)  # of six unknown ones two; what is known to be present is none
    taken = ~objective.absent.isnan()
    assert taken.tolist() == [[False, True, False, False], [False, False, True, False]]
    assert torch.allclose(objective.absent[taken], torch.tensor([-3.0, -1.0]).sigmoid())
    objective.end_epoch(-first, 3)
    assert (~objective.absent.isnan()).sum() == 4
    assert torch.allclose(objective.absent[taken], torch.tensor([-3.0, -1.0]).sigmoid())
    for epoch in (4, 5, 6):
        objective.end_epoch(first, epoch)
    assert (objective.absent.isnan() == (observed > 0)).all()


# one of each objective, and of each kind of knowledge
@pytest.mark.parametrize(
    "method", ["bce", "partial_bce", "ll_ct", "role", "g2netpl", "clip_partial"]
)
def test_a_method_trains_and_is_judged(comparing: Project, method: str):
    comparing.set(train__epochs=2)
    comparing.run("python", "-m", "experiments.baseline", method)
    found = json.loads((comparing / f"results/table1/{method}.json").read_text())
    assert 0 < found["mAP"] <= 100
    assert found["epochs"] == 3
    knows = {"all": 4, "some": 0.4, "one": 1, "clip": 1}[METHODS[method].knows]
    expected = 3 if METHODS[method].absent else knows
    assert found["observed_per_image"] == pytest.approx(expected, abs=0.35)


@pytest.mark.parametrize(("method", "boost"), [("an", 1.0), ("an_boost", 5.0)])
def test_a_boosted_method_multiplies_positive_activations_as_published(
    comparing: Project, method: str, boost: float
):
    comparing.set(train__epochs=0)
    comparing.run("python", "-m", "experiments.baseline", method)
    [note] = comparing.root.glob(f".ccd/baseline-{method}/*/staging/student.json")
    assert json.loads(note.read_text())["boost"] == boost


def test_one_method_runs_nothing_else_and_a_second_time_nothing(comparing: Project):
    assert "experiments" not in comparing.run("dvc", "status").stdout
    show_experiments(comparing.root)
    target = "experiments/dvc.yaml:baseline@bce"
    assert comparing.repro(target) == [target]
    assert comparing.repro(target) == []


@pytest.mark.parametrize(("stage", "method"), [("baseline", "role"), ("system", "clip_sarb")])
def test_a_stopped_method_goes_on_to_the_same_student(
    project: Project, cold_project: Project, stage: str, method: str
):
    """What it learns for every image, a table of labels, is kept with the weights; and what a
    system found of the classes, its prototypes.
    """
    with_experiments(cold_project)
    cold_project.set(train__epochs=3)
    command = ["python", "-m", f"experiments.{stage}", method]
    scratch = cold_project / f".ccd/{stage}-{method}"

    def student() -> dict[str, bytes]:
        last = sorted(scratch.glob("*/epochs/*.safetensors"))[-1]
        return {name: value.numpy().tobytes() for name, value in load_file(last).items()}

    project.run(*command)
    undisturbed = student()
    shutil.rmtree(scratch)
    one_thread = cold_project.environment | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=cold_project.root, env=one_thread)
    wait_for(lambda: bool(list(scratch.glob("*/epochs/0002.*.safetensors"))), process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() in (128 + signal.SIGTERM, 0)
    said = project.run(*command).stderr
    assert "resuming after epoch" in said
    assert student() == undisturbed


def relabel(project: Project, split: str) -> None:
    """Take the labels of a split away."""
    path = project / "truth.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith(split)]
    path.write_text("\n".join(lines) + "\n")
    project.repro("ground_truth")


def test_without_training_labels_clips_methods_are_judged_and_others_say_what_they_need(
    comparing: Project,
):
    relabel(comparing, "train")
    comparing.set(cam_boxes__views="grid", cam_boxes__mean_views=9.0, train__epochs=1)
    comparing.repro("fuse_labels")
    comparing.run("python", "-m", "experiments.baseline", "clip_an")
    comparing.run("python", "-m", "experiments.cdul")
    found = json.loads((comparing / "results/table1/cdul.json").read_text())
    assert found["label_mAP"] == [None] * 3
    assert 0 < found["mAP"] <= 100
    done = comparing.run("python", "-m", "experiments.baseline", "bce", check=False)
    assert done.returncode == 1
    assert "bce needs labels of training images: see source.labels" in done.stderr


@pytest.mark.parametrize("command", ["baseline bce", "cdul", "training_free"])
def test_without_test_labels_nothing_is_trained(comparing: Project, command: str):
    relabel(comparing, "test")
    comparing.set(cam_boxes__views="grid", cam_boxes__mean_views=9.0)
    if command == "cdul":
        comparing.repro("fuse_labels")
    done = comparing.run("python", "-m", *f"experiments.{command}".split(), check=False)
    assert done.returncode == 1
    assert "no test image has a label: see source.labels" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(comparing.root.glob(f".ccd/{command.replace(' ', '-')}/*/epochs/*"))


def test_soft_labels_begin_roles_table_in_their_proportion():
    table = Role(torch.tensor([[1.0, 0.0, 0.9, 0.1]]), 1.5, seed=0).table.sigmoid()[0]
    assert table[0].item() == pytest.approx(0.995)
    assert 0.4 <= table[1].item() <= 0.6
    assert 0.4 < table[3].item() < 0.7 < table[2].item() < 0.995


@pytest.fixture
def committed(comparing: Project) -> Project:
    """Its code and parameters are in git; photographs, labels and teacher are the user's own."""
    git(
        comparing,
        "add",
        "stages",
        "experiments",
        "dvc.yaml",
        "dvc.lock",
        "params.yaml",
        "data/none",
    )
    git(comparing, "add", ".dvc/config", ".dvcignore", ".gitignore", "results")
    git(comparing, "commit", "-qm", "a")
    return comparing


def git(project: Project, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    project.run("git", *identity, *words)


def test_an_ablation_runs_on_a_users_own_photographs_and_only_what_differs(committed: Project):
    command = ["python", "-m", "experiments.ablate", "tables3to5", "--seeds", "0"]
    said = committed.run(*command).stdout
    ran = re.findall(r"Running stage '([^']+)'", said)
    assert ran[:3] == ["check", "bias", "warmup"]
    assert not {"global_clip", "index", "weights"} & set(ran)
    lines = pd.read_csv(committed / "results/tables3to5.csv")
    assert lines.groupby("row", sort=False)["class"].agg(list).tolist() == [list(MINI_CLASSES)] * 2
    own = pd.read_csv(committed / "results/per_class.csv").set_index("class")["student_AP"]
    of_clone = lines[lines["row"] == "with debiasing"].set_index("class")["student_AP"]
    assert of_clone.equals(own)
    assert "Running stage" not in committed.run(*command).stdout


def test_what_the_committed_lock_has_from_another_machine_is_not_run_again(committed: Project):
    lock = committed / "dvc.lock"
    text = lock.read_text()
    stage = text[text.index("  class_text:\n") :]
    (made_here,) = re.findall(r"path: data/class_text.zarr\n.+\n +md5: (\w{32})", stage)[:1]
    lock.write_text(text.replace(made_here, "0" * 32))
    git(committed, "commit", "-qam", "as another machine has it")
    command = ["python", "-m", "experiments.ablate", "tables3to5", "--seeds", "0"]
    assert "Running stage 'class_text'" not in committed.run(*command).stdout


def test_table_1_runs_nothing_that_it_ran_before_with_another_seed_in_between(committed: Project):
    only = ["--only", "an"]
    command = ["python", "-m", "experiments.table1", *only, "--seeds", "0,1"]
    said = committed.run(*command).stdout
    assert said.count("Running stage 'experiments/dvc.yaml:baseline@an'") == 2
    lines = pd.read_csv(committed / "results/table1.csv")
    assert "Running stage" not in committed.run(*command).stdout
    assert pd.read_csv(committed / "results/table1.csv").equals(lines)


def test_experiments_refuse_what_is_not_committed_and_labels_that_are_not_there(committed: Project):
    committed.set(fuse_labels__alpha=0.6)
    command = ["python", "-m", "experiments.ablate", "table2"]
    done = committed.run(*command, check=False)
    assert done.returncode == 1
    assert "commit or undo them first: params.yaml" in done.stderr
    committed.set(source__labels="data/none")
    git(committed, "commit", "-qam", "b")
    for name in ("ablate table2", "table1"):
        module = f"experiments.{name}".split()
        done = committed.run("python", "-m", *module, check=False)
        assert done.returncode == 1
        assert "no test image has a label" in done.stderr
        assert "Running stage 'warmup'" not in done.stdout
    shutil.rmtree(committed / ".git")
    done = committed.run(*command, check=False)
    assert done.returncode == 1
    assert "experiments run what git has committed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_preset_takes_the_place_of_the_parameters_in_the_clone_alone(
    committed: Project, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(committed.root)
    own = Path("params.yaml").read_bytes()
    there = Path(".ccd/experiments/params.yaml")
    assert prepare("folder").source.root == "data/photos"
    assert there.read_text() == preset("folder")
    subprocess.run(["git", "checkout", "-q", "-f", "."], cwd=there.parent, check=True)
    assert there.read_text() == preset("folder"), "a run would be of other parameters"
    assert Path("params.yaml").read_bytes() == own
    assert prepare().source.root == "photos"
    assert there.read_bytes() == own
    with pytest.raises(SystemExit, match="no preset for 'fold'"):
        prepare("fold")


def test_what_the_demos_last_run_gave_need_not_be_committed(committed: Project, monkeypatch):
    monkeypatch.chdir(committed.root)
    made = [Path("demo") / name for name in ("world.py", "dvc.lock")]
    for written in ("one", "another"):
        for path in made:
            path.parent.mkdir(exist_ok=True)
            path.write_text(written)
        if written == "one":
            git(committed, "add", "demo")
            git(committed, "commit", "-qm", "b")
    assert uncommitted() == ["demo/world.py"]


def test_a_users_files_are_linked_into_the_clone_and_never_taken_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos/labels.csv", "words.txt", ".ccd/experiments/kept.txt"):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    Path("kept.txt").write_text("another")
    Path("photos/words.txt").symlink_to(Path("words.txt").resolve())
    given = ["photos", "photos/labels.csv", "photos/words.txt", "words.txt", "kept.txt", "absent"]
    for name in (*given, *given):
        link(Path(name))
    clone = Path(".ccd/experiments")
    assert (clone / "photos/labels.csv").read_text() == "photos/labels.csv"
    assert (clone / "words.txt").read_text() == "words.txt"
    assert (clone / "kept.txt").read_text() != "another"
    assert not Path("photos/labels.csv").is_symlink()
    assert Path("photos/words.txt").readlink() == Path("words.txt").resolve()


def test_the_table_has_the_published_figures_beside_what_was_run():
    ran = [(LEVELS[m.knows], m.title) for m in [*METHODS.values(), *SYSTEMS.values()]]
    ran += [(LEVELS["clip"], title) for title in ("CCD", "PIAA as published")]
    lines = pd.DataFrame(
        [
            {"level": level, "method": title, "mAP": 10.0 + seed, "seed": seed}
            for level, title in ran
            for seed in range(2)
        ]
    )
    table = summary(lines)
    assert table.index.is_unique
    assert set(ran) <= set(table.index)
    assert table.loc[(LEVELS["clip"], "CCD"), "published, VOC12"] == CCD[0]
    assert table.loc[(LEVELS["clip"], "CCD"), "mean"] == 10.5
    assert table.loc[(LEVELS["some"], "SARB"), "published, VOC07"] == 85.7
    assert table.loc[(LEVELS["clip"], "PIAA as published"), "published, NUS"] == 50.6
    assert table.loc[(LEVELS["clip"], "SST on pseudo-labels")].isna().sum() == 4
