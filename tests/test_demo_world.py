"""The demo world draws what it says it draws, and the pipeline's side of it holds no truth."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from demo import scenes, shapes, teacher, world
from demo.shapes import CLASSES, MASK, PLAIN, POLYSEMOUS, SHAPES, SIDE, masks
from stages.runtime.code import ROOT
from stages.runtime.params_file import edit_params


def test_every_shape_has_a_silhouette_of_its_own():
    bodies = {}
    for shape in SHAPES:
        body, detail = (np.asarray(m) > 0 for m in masks(shape))
        assert body.shape == (MASK, MASK)
        assert 0.08 < body.mean() < 0.95
        assert not (detail & ~body).any()
        bodies[shape] = body
    for one in SHAPES:
        for two in SHAPES:
            if one < two:
                both = (bodies[one] & bodies[two]).sum() / (bodies[one] | bodies[two]).sum()
                assert both < 0.9, (one, two)


def test_a_photograph_depends_on_its_own_seed_alone():
    jpeg, objects = world.photo(0, "test", False, 3)
    world.photo(0, "test", False, 4)
    assert world.photo(0, "test", False, 3) == (jpeg, objects)
    assert world.photo(1, "test", False, 3)[0] != jpeg
    assert world.photo(0, "train", False, 3)[0] != jpeg


def test_photographs_hold_one_to_five_classes_and_no_polysemous_shape(monkeypatch):
    drawn: list[str] = []
    monkeypatch.setattr(scenes, "draw_object", lambda canvas, shape, *rest: drawn.append(shape))
    counts = []
    for number in range(300):
        drawn.clear()
        _, objects = scenes.draw_photo(np.random.default_rng(number))
        assert {shape for shape, _ in objects} == {shape for shape in drawn if shape in CLASSES}
        assert not set(drawn) & set(POLYSEMOUS)
        assert set(drawn) <= {*CLASSES, *PLAIN}
        counts.append(sum(shape in CLASSES for shape in drawn))
    assert set(counts) == {1, 2, 3, 4, 5}
    assert np.mean(counts) == pytest.approx(2.78, abs=0.25)


def test_shapes_that_lend_their_names_are_there_where_asked_for(monkeypatch):
    drawn: list[str] = []
    monkeypatch.setattr(scenes, "draw_object", lambda canvas, shape, *rest: drawn.append(shape))
    for number in range(100):
        _, objects = scenes.draw_photo(np.random.default_rng(number), lenders=True)
        assert not {shape for shape, _ in objects} & set(POLYSEMOUS)
    assert set(POLYSEMOUS) <= set(drawn)


def test_the_box_of_an_object_is_what_it_covers():
    for number in range(20):
        rng = np.random.default_rng(number)
        canvas = Image.new("RGB", (SIDE, SIDE), (1, 2, 3))
        place = rng.uniform(0.2, 0.8, 2) * SIDE
        x0, y0, x1, y1 = shapes.draw_object(canvas, SHAPES[number % 12], 50, tuple(place), rng)
        ys, xs = np.nonzero((np.asarray(canvas) != (1, 2, 3)).any(axis=2))
        assert (x0, y0, x1, y1) == pytest.approx(
            (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), abs=1
        )


def test_captions_name_the_main_thing_with_the_stated_synonyms_and_polysemy(monkeypatch):
    drawn: list[str] = []
    monkeypatch.setattr(scenes, "draw_object", lambda canvas, shape, *rest: drawn.append(shape))
    monkeypatch.setattr(scenes, "finish", lambda canvas, rng: canvas)
    monkeypatch.setattr(scenes, "draw_background", lambda rng: None)
    named: dict[str, Counter[str]] = {shape: Counter() for shape in SHAPES}
    empty = 0
    for number in range(6000):
        drawn.clear()
        _, caption = scenes.draw_web_pair(np.random.default_rng(number))
        if not drawn:
            empty += 1
            assert re.search("wall|sky|floor", caption)
            continue
        main = drawn[-1]  # drawn last, on top
        first = next(w for w in caption.split() if w in {*SHAPES, "mug", "pine", "fir"})
        named[main][first] += 1
    share = {s: {w: n / named[s].total() for w, n in named[s].items()} for s in SHAPES}
    assert empty / 6000 == pytest.approx(0.05, abs=0.01)
    assert share["hexagon"]["bolt"] == pytest.approx(0.9, abs=0.06)
    assert share["square"]["key"] == pytest.approx(0.9, abs=0.06)
    assert share["circle"]["cup"] == pytest.approx(0.9, abs=0.06)
    assert share["cup"]["mug"] == pytest.approx(0.6, abs=0.1)
    assert share["tree"]["pine"] + share["tree"]["fir"] == pytest.approx(0.7, abs=0.1)
    assert share["star"]["star"] == pytest.approx(0.98, abs=0.03)
    assert named["hexagon"].total() / named["star"].total() == pytest.approx(1.5, abs=0.35)


def test_packing_the_vocabulary_does_not_change_what_a_word_means():
    images = torch.randint(0, 256, (64, 3, SIDE, SIDE), dtype=torch.uint8)
    tokenizer = teacher.SimpleTokenizer(context_length=20)
    tokens = tokenizer(["a star", "the big tree"] * 32)
    cycle = {"epochs": 1, "lr": 1e-3, "zoom": [0.8, 1.1], "blur": 1.0}
    model = teacher.train(images, tokens, {"seed": 0, "cycles": [cycle]})
    assert model.token_embedding.weight.shape == (teacher.VOCABULARY, 64)
    texts = model.encode_text(tokenizer(["a star", "the big tree"]), normalize=True)
    assert texts.shape == (2, 64)
    assert (texts[0] @ texts[1]).item() < 0.999


@pytest.mark.slow
def test_the_stages_of_the_demo_read_their_parameters_and_leave_what_the_pipeline_reads(tmp_path):
    shutil.copytree(ROOT / "demo", tmp_path / "demo")
    changes = {
        "world.train": 2,
        "world.test": 1,
        "teacher.pairs": 128,
        "teacher.cycles": [{"epochs": 1, "lr": 1e-3, "zoom": [0.8, 1.1], "blur": 0.5}],
        "teacher.gate": 0.0,
    }
    edit_params(tmp_path / "demo/params.yaml", changes)
    for stage in ("world", "teacher"):
        subprocess.run([sys.executable, "-m", f"demo.{stage}"], cwd=tmp_path, check=True)
    stages = YAML(typ="safe").load(ROOT / "demo/dvc.yaml")["stages"]
    for out in [out for entry in stages.values() for out in entry["outs"]]:
        assert (tmp_path / out).exists(), out
    assert len(list(tmp_path.glob("data/demo/photos/*/*.jpg"))) == 3
