"""`ccd review`, and the answers that come back: what is asked, and what they change."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from stages.command.review import Asked, Review
from stages.command.review_files import files_of
from stages.method.cuts import calibrated, cuts_of
from stages.method.evaluation import of_answers, share
from stages.method.fusion import answered
from stages.method.review import questions
from stages.runtime.errors import UserError
from stages.sources.answer_table import answers
from tests.conftest import MINI_CLASSES, ROOT, Project

UNKNOWN = pytest.approx(np.nan, nan_ok=True)
CLASSES = ["dog", "cat & mouse", "tv monitor"]
PLACES = ["=1.jpg", "a b/ü.jpg", "c#.jpg", "d?.jpg", "e.jpg", "000005", "1e5"]


def a_review() -> Review:
    says: list[dict[str, float]] = [{"dog": 0.9, "tv monitor": 0.6}, {}, {"cat & mouse": 0.7}]
    says += [{"dog": 0.5}, {}, {}, {}]
    asked = [
        Asked(place, f"photos/{place}", place, 64, 48, "unsure", "dog", said, 0.6)
        for place, said in zip(PLACES, says, strict=True)
    ]
    return Review(asked, CLASSES, "ccd 012")


def write(folder: Path, form: str, name: str, blind: bool = False) -> Path:
    for path, content in files_of(a_review(), form, folder / name, blind).items():
        path.write_bytes(content)
    return folder / name


ANSWERS = {"=1.jpg": [1, 0, np.nan], "c#.jpg": [np.nan, 1, 0], "000005": [0, 0, 0]}
WHOLE = {"=1.jpg": ["dog", "tv monitor"], "c#.jpg": ["cat & mouse"], "000005": []}


def by_image(path: Path) -> pd.DataFrame:
    return answers(str(path), CLASSES).set_index("image_id")


def test_a_table_that_is_filled_in_comes_back_cell_by_cell(tmp_path: Path):
    path = write(tmp_path, "csv", "queue.csv")
    as_a_spreadsheet = pd.read_csv(path)["image_id"]
    assert not pd.to_numeric(as_a_spreadsheet, errors="coerce").notna().any()
    queue = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert list(queue) == ["image_id", "why", "says", *CLASSES]
    assert queue["says"].iloc[0] == "dog 0.90; tv monitor 0.60"
    assert not (queue[CLASSES] != "").to_numpy().any()
    assert not queue["image_id"].str.startswith("=").any()
    for row, place in enumerate(PLACES):
        for name, value in zip(CLASSES, ANSWERS.get(place, [np.nan] * 3), strict=True):
            queue.loc[row, name] = "" if np.isnan(value) else str(int(value))
    path.write_text(f"{queue.to_csv(index=False)},,,,,\n,,,,,\n")  # with blank lines
    found = by_image(path)
    assert list(found.index) == list(ANSWERS)
    assert np.array_equal(found.to_numpy(), list(ANSWERS.values()), equal_nan=True)


READ_BY_LABEL_STUDIO = """
import json, sys
from label_studio_sdk.label_interface import LabelInterface

interface = LabelInterface(open(sys.argv[1]).read())
tasks = json.load(open(sys.argv[2]))
for task in tasks:
    assert interface.validate_task({"data": task["data"]})
    assert all(map(interface.validate_prediction, task["predictions"]))
    assert all(map(interface.validate_annotation, task["annotations"]))
print(json.dumps(interface.get_control("classes").labels))
"""


@pytest.fixture(scope="module")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with Label Studio's SDK."""
    return python_with("label-studio-sdk>=2.0", tmp_path_factory)


def python_with(tool: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with a tool whose needs are not those of this project."""
    place = tmp_path_factory.mktemp("tool")
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    install = [place / "bin/pip", "install", "--quiet", "--no-compile", tool]
    subprocess.run(install, check=True, capture_output=True)
    return place / "bin/python"


@pytest.mark.slow
def test_label_studio_takes_the_tasks_and_its_export_comes_back(tmp_path: Path, label_studio: Path):
    """By its SDK, which checks tasks, predictions and annotations against the interface."""
    path = write(tmp_path, "labelstudio", "tasks.json")
    tasks: list[Any] = json.loads(path.read_text())
    assert tasks[1]["data"]["image"] == "/data/local-files/?d=a%20b/%C3%BC.jpg"
    for task in tasks:
        image = task["data"]["image_id"]
        chosen = {"from_name": "classes", "to_name": "image", "type": "choices"}
        chosen |= {"value": {"choices": WHOLE.get(image, ["dog"])}}
        result = [chosen] if WHOLE.get(image, True) else []
        task["annotations"] = [{"result": result, "was_cancelled": image not in WHOLE}]
    export = tmp_path / "export.json"
    export.write_text(json.dumps(tasks))
    command = [label_studio, "-c", READ_BY_LABEL_STUDIO, tmp_path / "tasks.xml", export]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == CLASSES
    found = by_image(export)
    assert {i: [c for c in CLASSES if row[c]] for i, row in found.iterrows()} == WHOLE


def test_coco_is_read_by_its_own_reader_and_comes_back(tmp_path: Path):
    from pycocotools.coco import COCO

    read = COCO(write(tmp_path, "coco", "queue.json"))
    assert [c["name"] for c in read.loadCats(read.getCatIds())] == CLASSES
    for image, one in zip(read.loadImgs(read.getImgIds()), a_review().asked, strict=True):
        own = read.loadAnns(read.getAnnIds(imgIds=image["id"]))
        assert [read.cats[a["category_id"]]["name"] for a in own] == list(one.says)
        assert image["file_name"] == one.image_id
    with pytest.raises(UserError, match="has predictions, at which nobody looked"):
        by_image(tmp_path / "queue.json")
    content = json.loads((tmp_path / "queue.json").read_text())
    for annotation in content["annotations"]:
        del annotation["score"]  # as from a tool in which somebody looked
    (tmp_path / "same.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="has predictions"):
        by_image(tmp_path / "same.json")
    (tmp_path / "export.json").write_text(json.dumps(content | {"info": {}}))
    found = by_image(tmp_path / "export.json")
    said = {one.image_id: list(one.says) for one in a_review().asked}
    assert {i: [c for c in CLASSES if row[c]] for i, row in found.iterrows()} == said


LOOKED_THROUGH_IN_FIFTYONE = """
import json, sys
import fiftyone as fo
import fiftyone.utils.coco as coco

answers, names = json.loads(sys.argv[1]), json.loads(sys.argv[2])
queue = coco.COCODetectionDatasetImporter(data_path="photos", labels_path="queue.json")
export = coco.COCODetectionDatasetExporter(
    labels_path="answers.json", rel_dir="photos", export_media=False, classes=names
)
found = {}
with queue, export:
    for path, metadata, labels in queue:
        name = path.split("/photos/")[1]
        said = (labels or {}).get("detections") or fo.Detections()
        found[name] = {one.label: one.confidence for one in said.detections}
        if name in answers:
            right = [fo.Detection(label=c, bounding_box=[0, 0, 1, 1]) for c in answers[name]]
            export.export_sample(path, fo.Detections(detections=right), metadata=metadata)
print(json.dumps(found))
"""


@pytest.mark.skipif("CCD_FIFTYONE" not in os.environ, reason="installs a gigabyte: CCD_FIFTYONE=1")
def test_fiftyone_opens_the_queue_and_its_export_comes_back(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    """By its own reader and writer of COCO's form; its App wants a MongoDB, and is not started."""
    write(tmp_path, "coco", "queue.json")
    for place in PLACES:
        (tmp_path / "photos" / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48)).save(tmp_path / "photos" / place, "jpeg")
    python = python_with("fiftyone>=1.10", tmp_path_factory)
    script = [python, "-c", LOOKED_THROUGH_IN_FIFTYONE, json.dumps(WHOLE), json.dumps(CLASSES)]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {one.image_id: one.says for one in a_review().asked}
    found = by_image(tmp_path / "answers.json")
    assert {i: [c for c in CLASSES if row[c]] for i, row in found.iterrows()} == WHOLE


def test_datasets_opens_the_pictures_and_what_the_student_says(finished: Project, tmp_path: Path):
    import datasets

    file = str(tmp_path / "queue.parquet")
    finished.run("ccd", "review", file, "--count", "5")
    queue = datasets.Dataset.from_parquet(file, cache_dir=str(tmp_path / "cache"))
    assert len(queue) == 5
    for column in ("labels", "says"):
        assert queue.features[column].feature.names == list(MINI_CLASSES)
    assert queue[0]["image"].size[0] == 128
    assert queue[0]["labels"] is None
    assert queue[0]["says"] is not None


def test_the_lines_of_the_docs_answer_a_queue_with_datasets(finished: Project, tmp_path: Path):
    finished.run("ccd", "review", str(tmp_path / "queue.parquet"), "--count", "5")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tasks.md").read_text(), flags=re.S)
    (lines,) = (block for block in blocks if "import datasets" in block)
    asked = pd.read_parquet(tmp_path / "queue.parquet")["image_id"]
    seen = {asked[3]: list(MINI_CLASSES[:2]), asked[0]: []}
    told = re.sub(r"seen = .*", f"seen = {seen}", lines)
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", told], cwd=tmp_path, env=environment, check=True)
    found = answers(str(tmp_path / "answers.parquet"), list(MINI_CLASSES)).set_index("image_id")
    assert {i: [c for c in MINI_CLASSES if row[c]] for i, row in found.iterrows()} == seen


def test_what_datasets_saves_comes_back_and_what_nobody_looked_at_does_not(tmp_path: Path):
    import datasets

    path = write(tmp_path, "huggingface", "queue.parquet")
    assert by_image(path).empty
    queue = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
    number = queue.features["labels"].feature.str2int

    def looked_at(row: dict[str, Any]) -> dict[str, Any]:
        named = WHOLE.get(row["image_id"])
        return {"labels": None if named is None else [number(name) for name in named]}

    queue = queue.remove_columns("image").map(looked_at, features=queue.features.copy())
    queue.to_parquet(str(tmp_path / "answers.parquet"))
    found = by_image(tmp_path / "answers.parquet")
    assert {i: [c for c in CLASSES if row[c]] for i, row in found.iterrows()} == WHOLE


@pytest.mark.parametrize("form", ["csv", "labelstudio", "coco", "huggingface"])
def test_blind_nothing_of_the_student_is_told(tmp_path: Path, form: str):
    asked = [one._replace(why="SECRET", says={"dog": 0.1234}) for one in a_review().asked]
    review = a_review()._replace(asked=asked)
    text = b"".join(files_of(review, form, tmp_path / "x", blind=True).values())
    assert not [word for word in (b"SECRET", b"0.12", b"ccd 012") if word in text]


def test_of_several_files_the_last_one_counts(tmp_path: Path, capsys):
    folder = tmp_path / "answers"
    folder.mkdir()
    header = "image_id,dog,cat & mouse,tv monitor\n"
    (folder / "1.csv").write_text(f"{header}a.jpg,1,0,\nb.jpg,1,,\n")
    (folder / "2.csv").write_text(f"{header}a.jpg,0,,1\nc.jpg,,,\n")
    (folder / "notes.txt").write_text("not an answer")
    (folder / "._2.csv").write_text("of a Mac")
    found = by_image(folder)
    assert "passed over in" in capsys.readouterr().err
    assert found.to_dict("index") == {
        "a.jpg": {"dog": 0, "cat & mouse": 0, "tv monitor": 1},
        "b.jpg": {"dog": 1, "cat & mouse": UNKNOWN, "tv monitor": UNKNOWN},
    }


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", "a.jpg dog", "does not end in .csv, .json, .parquet"),
        ("a.csv", "image_id,dog\na.jpg,1\n", "has no column 'cat & mouse'"),
        ("a.csv", "image_id,dog,cat & mouse,tv monitor\na.jpg,yes,,\n", "dog is 'yes'"),
        ("a.csv", "image_id,dog,cat & mouse,tv monitor\na,1,,\na,0,,\n", "'a' comes twice"),
        ("a.json", "{", "cannot be read"),
        ("a.json", "{}", "is not of COCO's form"),
        ("a.json", '[{"data": {}}]', "task 1 is not as Label Studio's export"),
        ("a.json", "[1]", "task 1 is not as Label Studio's export"),
        (
            "a.json",
            '[{"data": {"image_id": "a"}, "annotations": [{"result": [{"type": "choices", '
            '"value": {"choices": null}}]}]}]',
            "task 1 is not as Label Studio's export",
        ),
        (
            "a.json",
            '[{"data": {"image_id": "a"}, "annotations": [{"result": [{"type": "choices", '
            '"value": {"choices": ["cow"]}}]}]}]',
            "'cow' is none of the classes",
        ),
    ],
)
def test_what_is_wrong_with_answers_is_said(tmp_path: Path, name: str, content: str, why: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        answers(str(tmp_path / name), CLASSES)
    assert why in str(error.value)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"image_id": ["a"]}, "has no column 'labels'"),
        ({"image_id": ["a"], "labels": [1]}, "`labels` is no list"),
        ({"image_id": ["a"], "labels": [["dog", "cow"]]}, "a: 'cow' is none of the classes"),
        ({"image_id": ["a"], "labels": [[1]]}, "a: '1' is none of the classes"),
        ({"image_id": ["a"], "labels": [[["dog"]]]}, "`labels` is no list"),
        ({"image_id": ["a"], "labels": [[{"dog": 1}]]}, "`labels` is no list"),
        ({"image_id": ["a", "a"], "labels": [["dog"], []]}, "'a' comes twice"),
        (pa.table([["a"], [["dog"]], [["dog"]]], ["image_id", "labels", "labels"]), "2 times"),
        (None, "cannot be read"),
    ],
)
def test_what_is_wrong_with_answers_of_datasets_is_said(
    tmp_path: Path, columns: dict[str, list[Any]] | pa.Table | None, why: str
):
    path = tmp_path / "a.parquet"
    if columns is None:
        path.write_bytes(b"PAR1")
    else:
        pq.write_table(pa.table(columns) if isinstance(columns, dict) else columns, path)
    with pytest.raises(UserError, match=why) as error:
        answers(str(path), CLASSES)
    assert str(path) in str(error.value)


@given(arrays.arrays(np.float32, (7, 3), elements=st.floats(0, 1, width=32)), st.integers(1, 9))
def test_no_image_is_asked_about_twice_and_each_kind_has_its_turn(p: np.ndarray, count: int):
    teacher = np.roll(p, 1, axis=1)
    found = questions(p, np.full(3, 0.5, np.float32), teacher, count)
    rows = [one.row for one in found]
    assert len(rows) == len(set(rows)) == min(count, 7)
    assert found[0].why == "unsure"
    apart = p[np.arange(7), teacher.argmax(axis=1)] < 0.5
    if count > 1 and apart[[n for n in range(7) if n != rows[0]]].any():
        assert found[1].why == "disagree"


def test_what_is_unsure_is_nearest_to_the_cut():
    p = np.array([[0.9, 0.01], [0.45, 0.02], [0.1, 0.3]], np.float32)
    found = questions(p, np.array([0.5, 0.25], np.float32), p, 1)
    assert [(one.row, one.why, one.about) for one in found] == [(2, "unsure", 1)]


def test_an_answer_is_a_label_for_certain():
    labels = np.array([[0.2, 0.8]], np.float32)
    told = np.array([[1, np.nan]], np.float32)
    found = answered(labels, told)
    assert found.dtype == np.float32
    assert found.tolist() == [[1, np.float32(0.8)]]


def test_ten_answers_of_a_class_move_its_cut():
    """A student that is right of the order, and pseudo-labels that call twice too much."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (400, 2))
    p = (1 / (1 + np.exp(-logits))).astype(np.float32)
    labels = (logits > 0).astype(np.float32)
    near = np.argsort(np.abs(logits[:, 0] - 1))[:10]
    told = np.full_like(labels, np.nan)
    told[near, 0] = logits[near, 0] > 2  # that is, never
    with_answers = labels.copy()
    with_answers[near, 0] = told[near, 0]
    before, after = cuts_of(p, labels), cuts_of(p, with_answers, told)
    calls = [
        (calibrated(p, of.scale, of.offset) >= of.threshold).mean(axis=0) for of in (before, after)
    ]
    assert calls[1][0] < 0.9 * calls[0][0]
    assert calls[1][1] == calls[0][1]  # the other class's is where it was
    none = cuts_of(p, labels, np.full_like(labels, np.nan))
    assert all(np.array_equal(a, b) for a, b in zip(none, before, strict=True))


def test_a_share_has_wilsons_interval():
    assert share("recall", 0, 0) == {}
    by_hand = {"recall": 80.0, "recall_low": 49.0, "recall_high": 94.3}
    assert share("recall", 8, 10) == by_hand


def test_answers_judge_the_calls_of_what_was_looked_at_alone():
    ids = pd.DataFrame({"image_id": ["a", "b"]})
    cuts = pd.DataFrame({"scale": [1.0, 1.0], "offset": [0.0, 0.0], "threshold": [0.5, 0.5]})
    student = ids.assign(dog=[0.9, 0.9], cat=[0.9, 0.1])
    told = ids.assign(dog=[1.0, 0.0], cat=[np.nan, 1.0])
    found = of_answers(student, cuts, {"train": told.head(0), "test": told})
    assert found == {
        "answers": {
            "test": {"images": 2, "answers": 3} | share("precision", 1, 2) | share("recall", 1, 2)
        }
    }


def test_from_a_queue_to_labels_cuts_and_figures(project: Project):
    project.run("ccd", "review", "queue.csv", "--count", "20")
    queue = pd.read_csv(project / "queue.csv", dtype=dict.fromkeys(MINI_CLASSES, object))
    truth = pd.read_csv(project / "truth.csv").set_index("image_id")
    first = MINI_CLASSES[0]
    queue[first] = 1 - truth.loc[queue["image_id"], first].to_numpy()  # somebody who is wrong
    queue.to_csv(project / "queue.csv", index=False)
    project.set(source__answers="queue.csv")
    before = pd.read_parquet(project / "data/pseudo_labels.parquet").set_index("image_id")
    ran = project.repro()
    assert {"answers", "fuse_labels", "train", "thresholds", "evaluate", "report"} <= set(ran)
    assert not {"warmup", "cam_boxes", "local_clip", "bias"} & set(ran)
    after = pd.read_parquet(project / "data/pseudo_labels.parquet").set_index("image_id")
    of_train = queue.set_index("image_id")[first].loc[lambda of: of.index.isin(after.index)]
    assert len(of_train) > 5
    assert (after.loc[of_train.index, first] == of_train.astype(float)).all()
    same = after.drop(columns=first).equals(before.drop(columns=first))
    assert same
    metrics = json.loads((project / "results/metrics.json").read_text())
    said = metrics["answers"]
    assert said["train"]["answers"] + said["test"]["answers"] == 20
    shown = (project / "data/report/index.html").read_text()
    assert "answers" in shown
    project.run("ccd", "review", "more.csv", "--count", "100")
    more = pd.read_csv(project / "more.csv")
    assert not set(more["image_id"]) & set(queue["image_id"])
    project.set(source__answers="data/none")
    project.repro()
    again = pd.read_parquet(project / "data/pseudo_labels.parquet").set_index("image_id")
    assert again.equals(before)


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (["queue.txt"], 2, "its name should end in .csv, .json or .parquet"),
        (["queue.csv", "--format", "coco"], 2, "should end in .json"),
        (["gone/queue.csv"], 2, "there is no folder gone"),
        (["truth.csv"], 1, "truth.csv is there already, perhaps with answers"),
    ],
)
def test_a_queue_that_cannot_be_written_is_one_line(
    finished: Project, words: list[str], code: int, why: str
):
    done = finished.run("ccd", "review", *words, check=False)
    assert (done.returncode, why in done.stderr) == (code, True), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_queue_is_of_the_student_that_was_evaluated(project: Project):
    project.set(train__epochs=1)
    project.repro("thresholds")
    done = project.run("ccd", "review", "queue.csv", check=False)
    assert done.returncode == 1
    assert "data/predictions.parquet is of another classifier: run `dvc repro`" in done.stderr
