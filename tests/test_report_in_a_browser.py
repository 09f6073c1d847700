"""The report as a browser shows it: nothing is asked of a network, by keys, at any width."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import CHROMIUM, MINI_CLASSES, Project

CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (of) => {
    const [r, g, b] = of.slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = rgb(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  for (const one of document.querySelectorAll("main *")) {
    const own = [...one.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || one.closest("select, script, style") || !one.getClientRects().length) continue;
    const style = getComputedStyle(one);
    const ink = rgb(one.closest("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(one))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), one.textContent.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
}
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")


@pytest.fixture(scope="module")
def wide(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The miniature with eighty classes, of which four are on the photographs."""
    root = tmp_path_factory.mktemp("wide") / "project"
    shutil.copytree(finished.root, root, symlinks=True)
    project = Project(root, finished.environment)
    more = [f"a thing with a long name {number}" for number in range(80 - len(MINI_CLASSES))]
    (root / "classes.txt").write_text("\n".join([*MINI_CLASSES, *more]) + "\n")
    truth = pd.read_csv(root / "truth.csv")
    truth = pd.concat([truth, pd.DataFrame(0, truth.index, more)], axis=1)
    truth.to_csv(root / "truth.csv", index=False)
    project.repro()
    return project


def opened(browser: Any, project: Project, width: int = 1280, scheme: str = "light") -> Any:
    """The report in a new page, which keeps what it asked for and what went wrong."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("console", lambda line: page.wrong.append(line.text))
    page.goto((project / "data/report/index.html").absolute().as_uri())
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("classes", [4, 80])
def test_it_fits_and_can_be_read(
    browser: Any, finished: Project, wide: Project, classes: int, width: int, scheme: str
):
    page = opened(browser, wide if classes == 80 else finished, width, scheme)
    assert page.wrong == []
    assert [url for url in page.asked if not url.startswith("data:")] == [page.url]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ratio, text = page.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    page.close()


def test_the_filters_leave_what_they_ask_for(browser: Any, finished: Project):
    page = opened(browser, finished)
    everything = page.locator(".gallery figure").count()
    assert everything > 4
    assert page.locator("output").inner_text() == f"{everything} of {everything} images"
    name = MINI_CLASSES[1]
    page.locator("select").first.select_option(name)
    shown = page.locator(".gallery figure:visible")
    of_class = shown.count()
    assert 0 < of_class < everything
    for figure in shown.all():
        assert name in figure.inner_text()
    page.locator("select").last.select_option("wrong")
    assert shown.count() <= of_class
    assert page.locator("output").inner_text() == f"{shown.count()} of {everything} images"
    page.locator("select").first.select_option("")
    page.locator("select").last.select_option("")
    page.locator("#classes").get_by_role("link", name=name).click()
    page.wait_for_function("name => document.querySelector('select').value === name", arg=name)
    assert shown.count() == of_class
    page.close()


def test_keys_alone_go_through_the_gallery(browser: Any, finished: Project):
    page = opened(browser, finished)
    page.locator("select").first.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    at = "[...document.querySelectorAll('.gallery figure')].indexOf(document.activeElement)"
    places = []
    for key in ("", "ArrowRight", "ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home"):
        if key:
            page.keyboard.press(key)
        places.append(page.evaluate(at))
    last = page.locator(".gallery figure").count() - 1
    assert places == [0, 1, 2, 1, last, last, 0]
    page.keyboard.press("ArrowDown")
    first, second = page.locator(".gallery figure").first, page.locator(".gallery figure:focus")
    assert second.bounding_box()["y"] > first.bounding_box()["y"]
    assert abs(second.bounding_box()["x"] - first.bounding_box()["x"]) < 1
    page.close()


def test_without_a_script_everything_is_there(browser: Any, finished: Project):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((finished / "data/report/index.html").absolute().as_uri())
    assert page.locator(".gallery figure:visible").count() > 4
    assert page.locator(".filters:visible").count() == 0
    context.close()


def test_every_picture_and_chart_says_what_it_is(browser: Any, finished: Project):
    page = opened(browser, finished)
    for picture in page.locator("img").all():
        assert picture.get_attribute("alt")
    assert page.get_by_role("img", name="The bias of each class").count() == 1
    assert page.locator("svg").count() == page.locator('[role="img"] > svg').count()
    page.close()


def test_the_student_is_shown_with_its_cuts(browser: Any, finished: Project, tmp_path: Path):
    page = opened(browser, finished)
    said = tmp_path / "said.csv"
    finished.run("ccd", "predict", "photos/test", "-o", str(said))
    named = pd.read_csv(said, keep_default_na=False).set_index("image")["labels"]
    for figure in page.locator(".gallery figure").all()[:8]:
        words = figure.inner_text().splitlines()
        image = words[-1]
        if image.startswith("test/"):
            calls = [word.rpartition(" ")[0] for word in words[:-1] if word[-3:-2] == "."]
            assert calls == [name for name in named[f"photos/{image}"].split("; ") if name]
    page.close()
