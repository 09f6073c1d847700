"""The report: one page that needs nothing from elsewhere, and says what the artifacts say."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.page import gallery
from stages.page.gallery import Said, changed
from tests.conftest import Project

NASTY = "<script>&\"'"


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)


def page(project: Project) -> Page:
    return Page((project / "data/report/index.html").read_text())


def test_nothing_on_the_page_comes_from_elsewhere(finished: Project):
    shown = page(finished)
    assert not [tag for tag, _ in shown.tags if tag in ("link", "iframe", "object")]
    assert [attributes for tag, attributes in shown.tags if tag == "script"] == [{}]  # one, inside
    for tag, attributes in shown.tags:
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                assert str(attributes[name]).startswith(("data:", "#")), (tag, attributes[name])
    text = (finished / "data/report/index.html").read_text()
    assert not re.search(r"url\((?!#|data:)|@import", text)


def test_every_chart_and_sample_is_there(finished: Project):
    shown = page(finished)
    sections = [attributes.get("id") for tag, attributes in shown.tags if tag == "section"]
    charts = ["gallery", "classes", "ladder", "per-class", "bias", "labels", "training"]
    assert [name for name in sections if name != "doubts"] == [*charts, "samples", "provenance"]
    assert sum(tag == "svg" for tag, _ in shown.tags) == 7
    assert {"Best", "Mixed", "Worst"} <= set(shown.words)


def test_what_somebody_answered_was_not_changed_by_local_views():
    labels, initial = np.array([[0.9, 1], [np.nan, 0.2]]), np.array([[0.5, 0.1], [np.nan, 0.2]])
    answers = np.array([[np.nan, 1], [np.nan, np.nan]])
    assert changed(labels, initial, answers) == pytest.approx(np.array([[0.4, 0], [0, 0]]))


def test_pictures_are_real_and_boxes_lie_on_them(finished: Project):
    shown = page(finished)
    pictures = [a["src"] for tag, a in shown.tags if tag == "img"]
    assert len(pictures) >= 3
    for picture in pictures:
        data = base64.b64decode(str(picture).partition(",")[2])
        assert max(Image.open(io.BytesIO(data)).size) <= 300
    boxes = [a["style"] for tag, a in shown.tags if tag == "i"]
    assert boxes
    for style in boxes:
        left, top, width, height = (float(x) for x in re.findall(r"([\d.]+)%", str(style)))
        assert 0 <= left <= left + width <= 100.01
        assert 0 <= top <= top + height <= 100.01


def test_the_figures_are_those_of_the_metrics(finished: Project):
    metrics = json.loads((finished / "results/metrics.json").read_text())
    words = page(finished).words
    assert f"{metrics['mAP']:.1f}" in words
    assert f"{metrics['teacher_mAP']:.1f}" in words


def test_names_with_markup_are_escaped_and_a_single_epoch_is_shown(project: Project):
    names = (project / "classes.txt").read_text().splitlines()
    (project / "classes.txt").write_text("\n".join([NASTY, *names[1:]]) + "\n")
    project.set(source__labels="data/none", train__epochs=1, warmup__epochs=1)
    project.repro()
    shown = page(project)
    assert "training" in [a.get("id") for tag, a in shown.tags if tag == "section"]
    assert sum(tag == "script" for tag, _ in shown.tags) == 1
    assert any(NASTY in word for word in shown.words)


def test_a_training_without_an_epoch_is_left_out(project: Project):
    project.set(train__epochs=0, warmup__epochs=0)
    project.repro()
    assert "training" not in [a.get("id") for tag, a in page(project).tags if tag == "section"]


@pytest.mark.parametrize("classes", [3, 20, 80])
def test_every_class_has_its_surest_image_in_the_gallery(classes: int, monkeypatch):
    """However few the others are."""
    rng = np.random.default_rng(0)
    p = rng.random((300, classes))
    cuts = np.full(classes, 0.5)
    rows = pd.DataFrame({"split": ["test"] * 300})
    said = Said(rows, p, np.roll(p, 1, axis=1), p >= cuts, p.round(), np.zeros_like(p), cuts)
    monkeypatch.setattr(gallery, "shown", lambda said, names, row: row)
    shown = gallery.gallery(said, [str(c) for c in range(classes)], 2)
    assert set(p.argmax(axis=0)) <= set(shown)
    assert len(shown) == len(set(shown))
