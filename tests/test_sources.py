"""The folder source: which files count, what is refused, and what the index says of bad ones."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.runtime.errors import UserError
from stages.sources.class_list import class_list
from stages.sources.folder import photographs
from stages.sources.label_table import labels
from tests.conftest import Project
from tests.test_images import noise, saved


def put(path: Path, content: bytes | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved(noise()) if content is None else content)


def test_images_are_found_in_any_tree_sorted_and_split(tmp_path):
    for name in (
        "b.PNG",
        "a/x.jpeg",
        "test/t.webp",
        "a/notes.txt",
        ".hidden/h.png",
        "testing/u.png",
    ):
        put(tmp_path / name)
    found, others = photographs(str(tmp_path), "test/")
    assert others == {".txt": 1, "hidden": 1}
    assert [(p.image_id, p.split) for p in found] == [
        ("a/x.jpeg", "train"),
        ("b.PNG", "train"),
        ("test/t.webp", "test"),
        ("testing/u.png", "train"),
    ]


def test_a_name_that_is_not_utf8_or_holds_a_newline_is_marked(tmp_path):
    put(tmp_path / "good ünïcode\u202f🙂.png")
    put(Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")))
    put(tmp_path / "two\nlines.png")
    found = {p.image_id: p.error for p in photographs(str(tmp_path), "test")[0]}
    assert found == {
        "good ünïcode\u202f🙂.png": "",
        "bad%FF.png": "the name is not UTF-8",
        "two%0Alines.png": "the name holds a control character",
    }


def test_a_link_that_leaves_the_root_is_refused_and_another_is_passed_over(tmp_path):
    put(tmp_path / "root/a.png")
    put(tmp_path / "elsewhere/b.png")
    (tmp_path / "root/again").symlink_to(tmp_path / "root")
    (tmp_path / "root/0.png").symlink_to(tmp_path / "root/a.png")
    assert [p.image_id for p in photographs(str(tmp_path / "root"), "test")[0]] == ["a.png"]
    (tmp_path / "root/out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leaves"):
        photographs(str(tmp_path / "root"), "test")


def test_a_root_that_is_itself_a_link_is_followed(tmp_path):
    put(tmp_path / "far/a.png")
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert [p.image_id for p in photographs(str(tmp_path / "near"), "test")[0]] == ["a.png"]


def test_no_folder_and_no_image_are_errors_that_name_the_parameter(tmp_path):
    for root in (tmp_path, tmp_path / "gone"):
        with pytest.raises(UserError, match="source.root in params.yaml"):
            photographs(str(root), "test")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "names no class"),
        ("dog\ncat\ndog\n", "'dog' twice"),
        ("image_id\n", "cannot be the name"),
        ("rank\n", "cannot be the name"),
        ("cat =\n", "is neither `name` nor `name = words`"),
        ("tvmonitor=tv monitor\n", "is neither `name` nor `name = words`"),
        ("big\tcat\n", "holds a control character"),
    ],
)
def test_a_file_of_class_names_is_checked(tmp_path, text, expected):
    (tmp_path / "c.txt").write_text(text)
    with pytest.raises(UserError, match=expected):
        class_list(str(tmp_path / "c.txt"))


def test_class_names_are_lines_without_blanks_comments_or_a_byte_order_mark(tmp_path):
    (tmp_path / "c.txt").write_text(
        "\ufeffdog\n\n  # animals\n  wild boar  \n<b>&\n", encoding="utf-8"
    )
    assert class_list(str(tmp_path / "c.txt")) == {
        name: name for name in ["dog", "wild boar", "<b>&"]
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("image_id,dog\na,1\na,0\n", "row 3: the image 'a' comes twice"),
        ("image_id,dog\na,1\nb,yes\n", "row 3: dog is 'yes'"),
        ("image_id,cat\na,1\n", "no column 'dog'"),
        ("image_id,dog\na,1\nb\n", "line 3: the row 'b' has 1 cells, the header has 2"),
        ("image_id,dog\na,1,\n", "line 2: the row 'a' has 3 cells, the header has 2"),
    ],
)
def test_a_table_of_labels_is_checked_with_the_row(tmp_path, text, expected):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=expected):
        labels(str(tmp_path / "t.csv"), ["dog"])


def test_an_empty_cell_of_a_table_of_labels_is_not_judged(tmp_path):
    (tmp_path / "t.csv").write_text("image_id,dog,cat\na,1,\nb, , 0.00\n")
    known = labels(str(tmp_path / "t.csv"), ["cat", "dog"])
    assert known["image_id"].tolist() == ["a", "b"]
    assert np.array_equal(known[["cat", "dog"]], [[np.nan, 1], [0, np.nan]], equal_nan=True)


def test_no_labels_is_an_empty_table():
    table = labels("data/none", ["dog", "cat"])
    assert list(table.columns) == ["image_id", "dog", "cat"]
    assert len(table) == 0


@pytest.fixture
def messy(project: Project) -> Project:
    """A project whose photographs are joined by one of every bad kind."""
    photos = project / "photos"
    put(photos / "zero.jpg", b"")
    put(photos / "text.jpg", b"not an image\n")
    content = saved(noise(200, 200), "JPEG")
    put(photos / "cut.jpg", content[: len(content) // 2])
    put(photos / "huge.png", saved(Image.new("1", (20000, 20000))))
    put(Path(os.fsdecode(os.fsencode(photos) + b"/bad\xff.png")))
    exif = Image.Exif()
    exif[0x0112] = 6
    put(photos / "turned.jpg", saved(noise(), "JPEG", exif=exif))
    put(photos / "cmyk.jpg", saved(noise().convert("CMYK"), "JPEG"))
    put(photos / "deep.png", saved(Image.fromarray(np.full((20, 20), 40000, np.uint16))))
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    put(photos / "moving.gif", saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    return project


def test_bad_images_are_rows_with_a_status_and_the_pipeline_goes_on(messy: Project):
    assert "index" in messy.repro()
    index = pd.read_parquet(messy / "data/index.parquet").set_index("image_id")
    statuses = index["status"].to_dict()
    assert {
        k: statuses[k] for k in ("zero.jpg", "text.jpg", "cut.jpg", "huge.png", "bad%FF.png")
    } == {
        "zero.jpg": "unreadable",
        "text.jpg": "unreadable",
        "cut.jpg": "truncated",
        "huge.png": "too_large",
        "bad%FF.png": "bad_name",
    }
    for good in ("turned.jpg", "cmyk.jpg", "deep.png", "moving.gif"):
        assert statuses[good] == "ok"
    assert tuple(index.loc["turned.jpg", ["width", "height"]]) == (30, 40)
    assert (index.loc[index["status"] != "ok", "error"] != "").all()
    labels = pd.read_parquet(messy / "data/pseudo_labels.parquet")
    assert set(labels["image_id"]) == set(
        index.index[(index["status"] == "ok") & (index["split"] == "train")]
    )
    boxes = pd.read_parquet(messy / "data/cam_boxes.parquet")
    sizes = index.loc[boxes["image_id"], ["width", "height"]].to_numpy()
    assert (boxes[["x1", "y1"]].to_numpy() <= sizes).all()
    assert (boxes[["x0", "y0"]].to_numpy() >= 0).all()


def test_too_many_bad_images_stop_the_run_and_the_first_are_named(messy: Project):
    messy.set(source__max_bad_share=0.05)
    done = messy.stage("index", check=False)
    assert done.returncode == 1
    assert "5 of 41 images cannot be used" in done.stderr
    assert "huge.png: too_large (" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"source__root": "nowhere"}, "nowhere is not there"),
        (
            {"teacher__model": "local-dir", "teacher__checkpoint": "photos"},
            "holds no open_clip_config",
        ),
        (
            {"student__arch": "resnet18", "student__weights": "teacher"},
            "wants `arch: teacher_tower`",
        ),
        ({"global_clip__view_size": 70}, "`global_clip.view_size` is 70; it must be a multiple"),
    ],
)
def test_a_wrong_parameter_is_one_line_from_the_stage_that_reads_it(
    project: Project, change, expected
):
    project.set(**change)
    stage = {"source__root": "index", "global_clip__view_size": "global_clip"}.get(
        next(iter(change)), "weights"
    )
    done = project.stage(stage, check=False)
    assert done.returncode == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_names_longer_than_the_teacher_can_read_are_named(project: Project):
    (project / "classes.txt").write_text("star\nheart\nmoon\n" + "very " * 40 + "long\n")
    done = project.stage("class_text", check=False)
    assert done.returncode == 1
    assert "longer than the teacher can read" in done.stderr


def test_without_ground_truth_there_are_diagnostics_and_a_report(project: Project):
    project.set(source__labels="data/none")
    assert set(project.repro()) == {"check", "ground_truth", "evaluate", "report"}
    metrics = (project / "results/metrics.json").read_text()
    assert '"diagnostics"' in metrics
    assert '"mAP"' not in metrics
    assert "There is no ground truth" in (project / "data/report/index.html").read_text()


def test_one_image_and_one_class_go_through(project: Project):
    shutil.rmtree(project / "photos")
    put(project / "photos/only.png")
    (project / "classes.txt").write_text("star\n")
    project.set(source__labels="data/none")
    project.repro()
    table = pd.read_parquet(project / "data/pseudo_labels.parquet")
    assert table.shape == (1, 2)
    assert np.isfinite(table.iloc[:, 1:].to_numpy()).all()


def test_a_class_may_have_the_name_of_a_column_of_the_index(project: Project):
    for name in ("classes.txt", "truth.csv"):
        text = (project / name).read_text().replace("moon", "split")
        (project / name).write_text(text)
    project.stage("ground_truth")
    assert "split" in pd.read_parquet(project / "data/ground_truth.parquet")


def test_images_without_any_local_view_keep_their_initial_labels(project: Project):
    project.set(cam_boxes__selection="fixed", cam_boxes__threshold=1.0)
    project.repro()
    assert len(pd.read_parquet(project / "data/cam_boxes.parquet")) == 0
    pseudo, initial = (
        pd.read_parquet(project / f"data/{name}_labels.parquet") for name in ("pseudo", "initial")
    )
    assert pseudo.equals(initial)


def test_a_student_may_be_a_plain_resnet_with_random_weights(project: Project):
    project.set(student__arch="resnet18", student__weights="random")
    ran = project.repro("cam_boxes")
    assert "weights" in ran
    assert "global_clip" not in ran
