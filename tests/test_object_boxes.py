"""Views from true boxes, for the paper's study; they never enter the pipeline by themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.object_boxes import Kind, around_objects, of_coco, of_voc
from stages.runtime.code import ROOT
from stages.runtime.errors import UserError
from tests.conftest import Project
from tests.test_published_sources import COCO, write_coco

ROWS = pd.DataFrame({"image_id": ["a", "b", "c"], "width": [100, 50, 80], "height": [80, 40, 80]})
OBJECTS = pd.DataFrame(
    [["a", "cat", 10, 20, 50, 60], ["a", "dog", 90, 70, 100, 80], ["b", "cat", 0, 0, 50, 40]],
    columns=["image_id", "class", "x0", "y0", "x1", "y1"],
)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_image_with_an_object_has_nine_views_inside_it(kind: Kind):
    views = around_objects(OBJECTS, ROWS, kind, np.random.default_rng(0))
    assert views.groupby("image_id").size().to_dict() == {"a": 9, "b": 9}
    sized = views.merge(ROWS, on="image_id")
    assert (sized["x0"] >= 0).all()
    assert (sized["x0"] < sized["x1"]).all()
    assert (sized["x1"] <= sized["width"]).all()
    assert (sized["y1"] <= sized["height"]).all()


def test_exact_views_begin_with_the_boxes_and_those_around_hold_them():
    exact = around_objects(OBJECTS, ROWS, Kind.exact, np.random.default_rng(0))
    assert exact.iloc[0].to_list() == ["a", 10, 20, 50, 60, "cat"]
    assert exact.iloc[1].to_list() == ["a", 90, 70, 100, 80, "dog"]
    assert exact.iloc[2].to_list() == ["a", 5, 15, 55, 65, "cat"]  # a quarter larger
    around = around_objects(OBJECTS, ROWS, Kind.around, np.random.default_rng(0))
    cats = around[(around["image_id"] == "a") & (around["class"] == "cat")]
    assert (cats["x0"] <= 10).all()
    assert (cats["x1"] >= 50).all()
    assert (cats["x1"] <= 50 + 13).all()
    assert around.drop_duplicates().shape[0] > 9


def test_vocs_boxes_count_from_one_and_difficult_objects_are_left_out(tmp_path: Path):
    (tmp_path / "x.xml").write_text(
        "<annotation><object><name>cat</name><difficult>0</difficult>"
        "<bndbox><xmin>1</xmin><ymin>3</ymin><xmax>10</xmax><ymax>12.0</ymax></bndbox></object>"
        "<object><name>dog</name><difficult>1</difficult>"
        "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"
        "</annotation>"
    )
    assert of_voc(tmp_path, ["x"]).to_numpy().tolist() == [["x", "cat", 0, 2, 10, 12]]


def test_cocos_boxes_are_whole_pixels_around_its_own(tmp_path: Path):
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [1.5, 2.0, 10.2, 5.0]
    path.write_text(json.dumps(content))
    found = of_coco(tmp_path / "annotations")
    assert len(found) == 6
    assert set(found["class"]) <= set(COCO)
    assert found.iloc[0][["x0", "y0", "x1", "y1"]].to_list() == [1, 2, 12, 7]


def test_no_object_at_all_is_an_error():
    with pytest.raises(UserError, match="no training image has an object"):
        around_objects(OBJECTS.assign(image_id="z"), ROWS, Kind.exact, np.random.default_rng(0))


def test_the_command_writes_a_table_that_the_stage_takes(project: Project):
    shutil.copytree(ROOT / "experiments", project / "experiments")
    objects = project / "objects.csv"
    objects.write_text("image_id,class,x0,y0,x1,y1\ntrain/00000.jpg,star,5,5,60,70\n")
    done = project.run(
        "python", "-m", "experiments.object_boxes", "around", "around.csv", "--objects",
        "objects.csv",
    )  # fmt: skip
    assert "9 views of 1 images in around.csv" in done.stdout
    project.set(cam_boxes__views="file", cam_boxes__boxes="around.csv")
    project.stage("cam_boxes")
    boxes = pd.read_parquet(project / "data/cam_boxes.parquet")
    assert boxes["class"].tolist() == ["star"] * 9
    failed = project.run(
        "python", "-m", "experiments.object_boxes", "exact", "e.csv", check=False
    )  # fmt: skip
    assert failed.returncode == 1
    assert "folder knows no boxes: give --objects" in failed.stderr
