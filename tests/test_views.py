"""Where to look, beside the student's own maps: the paper's comparisons, and boxes of a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.images.crops import CropRule, crop_size, crop_squashed
from stages.method.similarity import class_probabilities, class_probabilities_in_half
from stages.method.views import (
    grid_boxes,
    random_boxes,
    window_boxes,
)
from stages.runtime.errors import UserError
from stages.sources.box_table import box_table
from tests.conftest import Project

LOOKING = ("cam_boxes", "local_clip", "fuse_labels", "evaluate", "report")


@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_grid_covers_the_image_once(side: int):
    boxes = grid_boxes(side)
    assert len(boxes) == side**2
    seen = np.zeros((12, 12), int)
    for x0, y0, x1, y1 in boxes:
        seen[round(y0 * 12) : round(y1 * 12), round(x0 * 12) : round(x1 * 12)] += 1
    assert (seen == 1).all()


def test_windows_are_a_pyramid_half_over_each_other():
    boxes = np.array(window_boxes(13))
    assert (len(window_boxes(4)), len(boxes)) == (4, 13)
    assert window_boxes(9) == window_boxes(13)[4:]
    assert np.allclose(boxes[:4, 2:] - boxes[:4, :2], 2 / 3)
    assert np.allclose(boxes[4:, 2:] - boxes[4:, :2], 1 / 2)
    for side in (boxes[:4], boxes[4:]):
        starts = np.unique(side[:, 0].round(6))
        width = side[0, 2] - side[0, 0]
        assert np.allclose(np.diff(starts), width / 2)
        assert (starts[0], starts[-1] + width) == pytest.approx((0, 1))
        assert sorted(map(tuple, side[:, :2])) == sorted(map(tuple, side[:, 1::-1]))


@given(st.integers(1, 30), st.integers(0, 99))
def test_random_boxes_lie_in_the_image_and_follow_the_seed(count: int, seed: int):
    boxes = random_boxes(count, np.random.default_rng(seed))
    assert (boxes == random_boxes(count, np.random.default_rng(seed))).all()
    assert len(boxes) == count
    for x0, y0, x1, y1 in boxes:
        assert 0 <= x0 < x1 <= 1
        assert 0 <= y0 < y1 <= 1
        assert 0.249 < x1 - x0 < 0.751


@given(st.integers(0, 99), st.sampled_from([20.0, 100.0]))
def test_half_precision_is_torchs_on_unit_vectors(seed: int, factor: float):
    rng = np.random.default_rng(seed)
    images, texts = (F.normalize(torch.from_numpy(rng.normal(size=(4, 8))), dim=1) for _ in "ab")
    logits = (factor * images.half()) @ texts.half().T
    expected = logits.float().softmax(dim=1).half().float().numpy()
    own = class_probabilities_in_half(images.float().numpy(), texts.float().numpy(), 1 / factor)
    assert own.dtype == np.float32
    assert (own == own.astype(np.float16)).all()
    # torch may round the sum of a product once more: a step of half precision in the similarity
    assert np.allclose(own, expected, rtol=0.07, atol=1e-3)
    full = class_probabilities(images.float().numpy(), texts.float().numpy(), 1 / factor)
    assert np.allclose(own, full, rtol=0.1, atol=0.02)


@pytest.mark.parametrize(
    ("box", "size"),
    [((0, 0, 160, 639), (160, 640)), ((0, 0, 639, 160), (640, 160)), ((0, 0, 640, 9), (640, 32))],
)
def test_sides_may_be_whole_pixels_instead_of_strides(box, size):
    assert crop_size(box, CropRule(640, rounding="pixel"), 32) == size


def test_a_square_view_is_one_whatever_the_box():
    assert crop_size((0, 0, 10, 90), CropRule(64, "square"), 32) == (64, 64)


def test_a_part_of_the_squashed_image_is_torchs_own_enlargement():
    squashed = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    part = crop_squashed(squashed, (4, 2, 12, 18), (16, 32))
    assert part.shape == (3, 32, 16)
    expected = F.interpolate(squashed[None, :, 2:18, 4:12].float(), (32, 16), mode="bilinear")
    assert torch.equal(part, expected[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image_id,x0,y0,x1\na,0,0,1\n", "has no column 'y1'"),
        ("image_id,x0,y0,x1,y1\na,0,0,4,4\na,4,0,4,4\n", r"box 2 is \[4, 0, 4, 4\]"),
        ("image_id,x0,y0,x1,y1\na,0,0,4.5,4\n", "not whole pixels"),
        ("image_id,x0,y0,x1,y1\na,-1,0,4,4\n", "box 1 is"),
        ("image_id,x0,y0,x1,y1\na,x,0,4,4\n", "box 1 is"),
        ("image_id,x0,y0,x1,y1\na,,0,4,4\n", "box 1 is"),
    ],
)
def test_a_table_of_boxes_is_checked_with_the_row(tmp_path: Path, text: str, expected: str):
    (tmp_path / "b.csv").write_text(text)
    with pytest.raises(UserError, match=expected):
        box_table(str(tmp_path / "b.csv"))


def test_a_table_of_boxes_may_be_parquet_and_name_classes(tmp_path: Path):
    table = pd.DataFrame({"image_id": ["a"], "x0": [0], "y0": [1], "x1": [5], "y1": [6]})
    table.assign(**{"class": "star"}).to_parquet(tmp_path / "b.parquet")
    assert box_table(str(tmp_path / "b.parquet")).iloc[0].to_list() == ["a", "star", 0, 1, 5, 6]
    with pytest.raises(UserError, match="cannot be read"):
        box_table(str(tmp_path / "none.csv"))


def test_views_of_a_file_are_taken_as_they_are(project: Project):
    rows = ["image_id,x0,y0,x1,y1,class", "train/00003.jpg,10,20,70,90,star"]
    rows += [
        "train/00001.jpg,0,0,64,64,",
        "train/00003.jpg,0,0,30,40,sea",
        "test/00001.jpg,0,0,9,9,",
    ]
    (project / "own.csv").write_text("\n".join(rows))
    project.set(cam_boxes__views="file", cam_boxes__boxes="own.csv")
    said = project.stage("cam_boxes").stderr
    assert "3 views of 2 of 24 images from own.csv; 1 of other images are left out" in said
    boxes = pd.read_parquet(project / "data/cam_boxes.parquet")
    assert boxes["image_id"].str[-9:-4].tolist() == ["00001", "00003", "00003"]
    assert boxes["class"].tolist() == ["", "star", "sea"]
    assert boxes["rank"].tolist() == [0, 0, 1]
    assert boxes[["x0", "y0", "x1", "y1"]].to_numpy().tolist()[1] == [10, 20, 70, 90]
    image = Image.open(project / "photos/train/00003.jpg")
    edges = [10 / image.width, 20 / image.height, 70 / image.width, 90 / image.height]
    squashed = boxes[["u0", "v0", "u1", "v1"]].to_numpy()[1] / 64
    assert np.abs(squashed - edges).max() < 1 / 64
    (project / "own.csv").write_text("image_id,x0,y0,x1,y1\ntrain/00003.jpg,0,0,999,9\n")
    failed = project.stage("cam_boxes", check=False)
    assert "a box of train/00003.jpg reaches out of the image" in failed.stderr
    assert "Traceback" not in failed.stderr


@pytest.mark.parametrize("views", ["grid", "windows", "random"])
def test_views_without_a_map_go_all_the_way_to_the_report(project: Project, views: str):
    project.set(cam_boxes__views=views, cam_boxes__mean_views=4)
    for stage in LOOKING:
        project.stage(stage)
    boxes = pd.read_parquet(project / "data/cam_boxes.parquet")
    assert (boxes.groupby("image_id").size() == 4).all()
    assert boxes["score"].isna().all()
    facts = json.loads((project / "results/metrics.json").read_text())["diagnostics"]
    assert facts["views_per_image"] == 4
    assert "Best" in (project / "data/report/index.html").read_text()


def test_pairs_that_are_not_judged_are_left_out_of_every_average():
    """As VOC's difficult objects under `ignore`: the table may hold NaN."""
    from stages.method.average_precision import (
        mean_average_precision,
        per_class_average_precision,
    )
    from stages.method.evaluation import micro_average_precision

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (20, 3)).astype(np.float32)
    scores = rng.random((20, 3)).astype(np.float32)
    truth[::3, 1] = np.nan
    truth[:, 2] = np.nan
    kept = ~np.isnan(truth[:, 1])
    from sklearn.metrics import average_precision_score

    expected = [
        average_precision_score(truth[:, 0], scores[:, 0]),
        average_precision_score(truth[kept, 1], scores[kept, 1]),
    ]
    assert per_class_average_precision(truth, scores)[:2] == pytest.approx(expected)
    assert np.isnan(per_class_average_precision(truth, scores)[2])
    assert mean_average_precision(truth, scores) == pytest.approx(np.mean(expected))
    known = ~np.isnan(truth)
    assert micro_average_precision(truth, scores) == pytest.approx(
        average_precision_score(truth[known], scores[known])
    )
