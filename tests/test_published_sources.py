"""Pascal VOC, COCO and NUS-WIDE in their official layouts, indexed as their conventions say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stages.ground_truth import differences, labels
from stages.index import photographs
from stages.runtime.code import ROOT
from stages.runtime.errors import UserError
from stages.sources import label_table
from stages.sources.catalogue import DATA_SETS, odd_images
from stages.sources.class_list import class_list
from tests.conftest import Project

CLASSES = ROOT / "stages/sources/classes"
VOC = list(class_list(str(CLASSES / "voc.txt")))
COCO = list(class_list(str(CLASSES / "coco.txt")))
NUS = list(class_list(str(CLASSES / "nuswide.txt")))


def draw(path: Path, number: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (37, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_voc(root: Path, year: str, lists: dict[str, dict[str, dict[str, int]]]) -> None:
    """lists: split -> image -> class -> 1, or 0 for difficult; -1 for all other classes."""
    main = root / f"VOC{year}/ImageSets/Main"
    main.mkdir(parents=True, exist_ok=True)
    for split, images in lists.items():
        (main / f"{split}.txt").write_text("\n".join(images))  # no final newline
        for name in VOC:
            lines = [f"{image} {found.get(name, -1):2d}" for image, found in images.items()]
            (main / f"{name}_{split}.txt").write_text("\n".join(lines) + "\n")
        for number, image in enumerate(images):
            draw(root / f"VOC{year}/JPEGImages/{image}.jpg", number)


VOC12 = {
    "train": {
        "2008_000015": {"bottle": 1, "person": 0},
        "2008_000008": {"horse": 1, "person": 1},
        "2008_000023": {"tvmonitor": 0},  # difficult only
    },
    "val": {"2007_000033": {"aeroplane": 1}},
    "trainval": {"2008_999999": {"cat": 1}},  # a list of the other year's convention
}


@pytest.fixture
def voc12(tmp_path: Path) -> Path:
    write_voc(tmp_path / "VOCdevkit", "2012", VOC12)
    draw(tmp_path / "VOCdevkit/VOC2012/JPEGImages/2009_000001.jpg")  # in no list
    return tmp_path / "VOCdevkit"


def test_what_is_in_vocs_index_does_not_depend_on_its_labels(voc12: Path):
    before = photographs("voc2012", str(voc12), "")
    for path in (voc12 / "VOC2012/ImageSets/Main").glob("*_*.txt"):
        path.unlink()
    assert photographs("voc2012", str(voc12), "") == before


def truth(kind: str, folder: Path, classes: list[str], difficult: Any = "negative") -> pd.DataFrame:
    return labels(kind, str(folder), classes, difficult).set_index("image_id")


def test_voc_2012_is_its_train_and_val_lists_sorted_by_name(voc12: Path):
    found = photographs("voc2012", str(voc12), "")
    assert [(p.image_id, p.split) for p in found] == [
        ("2008_000008", "train"),
        ("2008_000015", "train"),
        ("2008_000023", "train"),
        ("2007_000033", "test"),
    ]
    assert found[0].path == f"{voc12.as_posix()}/VOC2012/JPEGImages/2008_000008.jpg"


def test_voc_2007_is_its_trainval_and_test_lists(tmp_path: Path):
    write_voc(
        tmp_path, "2007", {"trainval": {"000012": {"car": 1}}, "test": {"000001": {"dog": 1}}}
    )
    found = photographs("voc2007", str(tmp_path), "")
    assert [(p.image_id, p.split) for p in found] == [("000012", "train"), ("000001", "test")]
    known = truth("voc2007", tmp_path / "VOC2007/ImageSets/Main", VOC)
    assert known["car"].tolist() == [1, 0]
    assert known["dog"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("difficult", "value"), [("negative", 0.0), ("positive", 1.0), ("ignore", np.nan)]
)
def test_what_is_only_difficult_to_see_counts_as_asked(voc12: Path, difficult: str, value: float):
    known = truth("voc2012", voc12 / "VOC2012/ImageSets/Main", VOC, difficult)
    expected = {
        "2008_000008": {"horse": 1, "person": 1},
        "2008_000015": {"bottle": 1, "person": value},
        "2008_000023": {"tvmonitor": value},
        "2007_000033": {"aeroplane": 1},
    }
    literal = [[found.get(name, 0) for name in VOC] for found in expected.values()]
    assert list(known.index) == list(expected)
    assert np.array_equal(known[VOC].to_numpy(), np.array(literal, np.float32), equal_nan=True)


def test_a_voc_list_without_an_image_or_with_another_value_is_refused(voc12: Path):
    folder = voc12 / "VOC2012/ImageSets/Main"
    lines = (folder / "cat_train.txt").read_text()
    (folder / "cat_train.txt").write_text(lines.replace("2008_000015 -1\n", ""))
    with pytest.raises(UserError, match=r"cat_train.txt has no line for 1 images, as 2008_000015"):
        truth("voc2012", folder, VOC)
    (folder / "cat_train.txt").write_text(lines.replace("-1", "2", 1))
    with pytest.raises(UserError, match="is no image and one of -1, 0, 1"):
        truth("voc2012", folder, VOC)


def write_coco(root: Path) -> None:
    """Ids that sort otherwise as text than as numbers; a crowd; images without an annotation."""
    categories = [{"id": 2 * n + 1, "name": name} for n, name in enumerate(COCO)]
    parts: dict[str, tuple[list[int], list[tuple[int, str, int]]]] = {
        "train2014": (
            [9, 100, 25, 1000, 30],
            [
                (9, "dog", 0), (9, "dog", 0), (100, "person", 1),
                (25, "toothbrush", 0), (1000, "hot dog", 0), (25, "person", 0),
            ],
        ),
        "val2014": ([42, 7], [(42, "cat", 0)]),
    }  # fmt: skip
    for part, (images, found) in parts.items():
        content = {
            "images": [{"id": i, "file_name": f"COCO_{part}_{i:012d}.jpg"} for i in images],
            "categories": categories[::-1],
            "annotations": [
                {"image_id": i, "category_id": 2 * COCO.index(name) + 1, "iscrowd": crowd}
                for i, name, crowd in found
            ],
        }
        path = root / f"annotations/instances_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        for image in images:
            draw(root / f"{part}/COCO_{part}_{image:012d}.jpg", image)


def test_coco_leaves_out_images_without_annotation_and_sorts_ids_as_text(tmp_path: Path):
    write_coco(tmp_path)
    found = photographs("coco2014", str(tmp_path), "")
    ids = [p.image_id for p in found]
    assert [int(i[-16:-4]) for i in ids] == [100, 1000, 25, 9, 42]
    assert ids[0] == "train2014/COCO_train2014_000000000100.jpg"
    assert [p.split for p in found] == ["train"] * 4 + ["test"]
    assert Path(found[0].path).exists()
    known = truth("coco2014", tmp_path / "annotations", COCO)
    assert list(known.index) == ids
    on = [set(known.columns[row > 0]) for row in known.to_numpy()]
    # the crowd of persons counts; so does what has two annotations, once
    assert on == [{"person"}, {"hot dog"}, {"toothbrush", "person"}, {"dog"}, {"cat"}]


def test_what_is_in_cocos_index_does_not_depend_on_which_class_an_annotation_is_of(tmp_path: Path):
    write_coco(tmp_path)
    before = photographs("coco2014", str(tmp_path), "")
    path = tmp_path / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = 1
    path.write_text(json.dumps(content))
    assert photographs("coco2014", str(tmp_path), "") == before


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("images"), "is not of COCO's form: KeyError 'images'"),
        (lambda c: c["annotations"].append({"image_id": 9, "category_id": 4}), "category 4"),
        (lambda c: c["images"].append(c["images"][0]), "two images have the same id"),
        (lambda c: c["annotations"].append({"image_id": 1, "category_id": 1}), "is not listed"),
        (lambda c: c["categories"].append({"id": 1, "name": "again"}), "a category comes twice"),
        (lambda c: c["categories"][0].update(name="gnome"), "differ in classes, as in 'gnome'"),
    ],
)
def test_a_coco_file_that_contradicts_itself_is_refused(tmp_path: Path, change, expected: str):
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_train2014.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=expected):
        truth("coco2014", tmp_path / "annotations", COCO)


NUS_IMAGES = {
    "Train": ["actor/0001_2124494179.jpg", "zebra/0002_174174086.jpg", "alley/0003_7.jpg"],
    "Test": ["beach/0010_5.jpg"],
}
NUS_ON = {
    "actor/0001_2124494179.jpg": {"person", "sky"},
    "zebra/0002_174174086.jpg": {"zebra"},
    "alley/0003_7.jpg": set(),
    "beach/0010_5.jpg": {"beach", "ocean"},
}


def write_nuswide(root: Path) -> None:
    for part, names in NUS_IMAGES.items():
        lists = root / f"ImageList/{part}Imagelist.txt"
        lists.parent.mkdir(parents=True, exist_ok=True)
        lists.write_text("\r\n".join(name.replace("/", "\\") for name in names))
        for concept in NUS:
            path = root / f"Groundtruth/TrainTestLabels/Labels_{concept}_{part}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            values = [str(int(concept in NUS_ON[name])) for name in names]
            path.write_text("\n".join(values) + ("\n" if concept != "zebra" else ""))
    for part, names in {"train": NUS_IMAGES["Train"], "val": NUS_IMAGES["Test"]}.items():
        (root / "spml").mkdir(exist_ok=True)
        np.save(root / f"spml/formatted_{part}_images.npy", np.array(names))
        values = [[float(concept in NUS_ON[name]) for concept in NUS] for name in names]
        np.save(root / f"spml/formatted_{part}_labels.npy", np.array(values))
    for number, name in enumerate(NUS_ON):
        draw(root / "Flickr" / name, number)


@pytest.mark.parametrize(
    ("kind", "folder"), [("nuswide", "Groundtruth/TrainTestLabels"), ("nuswide_spml", "spml")]
)
def test_both_forms_of_nuswide_keep_their_lists_order_and_empty_images(tmp_path, kind, folder):
    write_nuswide(tmp_path)
    found = photographs(kind, str(tmp_path), "")
    assert [p.image_id for p in found] == list(NUS_ON)
    assert [p.split for p in found] == ["train"] * 3 + ["test"]
    assert all(Path(p.path).exists() for p in found)
    known = truth(kind, tmp_path / folder, NUS)
    on = {name: set(known.columns[row > 0]) for name, row in known.iterrows()}
    assert on == NUS_ON


def test_nuswide_lists_that_do_not_fit_are_refused(tmp_path: Path):
    write_nuswide(tmp_path)
    short = tmp_path / "Groundtruth/TrainTestLabels/Labels_sky_Train.txt"
    short.write_text("1\n0\n")
    with pytest.raises(UserError, match="Labels_sky_Train.txt has 2 lines, TrainImagelist.txt 3"):
        truth("nuswide", short.parent, NUS)
    with pytest.raises(UserError, match="alphabetical order"):
        truth("nuswide_spml", tmp_path / "spml", NUS[::-1])
    with pytest.raises(UserError, match=r"shape \(3, 81\); there are 3 images and 80 classes"):
        truth("nuswide_spml", tmp_path / "spml", NUS[1:])
    names = tmp_path / "spml/formatted_train_images.npy"
    np.save(names, np.array(["a.jpg"], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read: .*allow_pickle"):
        photographs("nuswide_spml", str(tmp_path), "")


@pytest.mark.parametrize("name", ["../VOC2007/x", "/etc/x", "a/../../b", ".."])
def test_a_list_that_names_a_path_outside_is_refused(voc12: Path, name: str):
    (voc12 / "VOC2012/ImageSets/Main/train.txt").write_text(f"2008_000008\n{name}\n")
    with pytest.raises(UserError, match=r"train.txt: .* is no path below"):
        photographs("voc2012", str(voc12), "")


def test_a_listed_link_that_leaves_the_root_is_refused(voc12: Path, tmp_path: Path):
    draw(tmp_path / "secret.jpg")
    photo = voc12 / "VOC2012/JPEGImages/2008_000008.jpg"
    photo.unlink()
    photo.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="is a link that leaves"):
        photographs("voc2012", str(voc12), "")
    folder = voc12 / "VOC2012/JPEGImages"
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link that leaves"):
        photographs("voc2012", str(voc12), "")


@pytest.mark.parametrize("kind", ["voc2007", "voc2012", "coco2014", "nuswide", "nuswide_spml"])
def test_a_missing_data_set_is_named_with_its_parameter(tmp_path: Path, kind: str):
    with pytest.raises(UserError, match=r"source.root in params.yaml: .*cannot be read: No such"):
        photographs(kind, str(tmp_path), "")
    with pytest.raises(UserError, match="is no folder"):
        photographs(kind, str(tmp_path / "nowhere"), "")


def test_counts_that_differ_from_the_published_ones_are_said_with_both_numbers():
    assert odd_images("voc2012", {"train": 5717, "test": 5823}) == []
    assert odd_images("folder", {"train": 3, "test": 4}) == []
    assert odd_images("nuswide_spml", {"train": 150000, "test": 60200}) == [
        "nuswide_spml test has 60200 images, the published split 60260"
    ]


def test_labels_that_differ_from_the_published_ones_are_said_with_both_numbers(voc12: Path):
    table = truth("voc2012", voc12 / "VOC2012/ImageSets/Main", VOC)
    known = {"train": table[:3], "test": table[3:]}
    odd = differences("voc2012", known, "negative")
    assert "voc2012 train has 1.0000 labels an image, published are 1.4572" in odd
    assert "voc2012 train has 0 images of aeroplane, published are 327 (and 19 other" in odd[1]
    assert not any("classes are not" in line for line in odd)
    assert "the 20 classes are not those of voc2012 in their published order" in differences(
        "voc2012", {"train": table[VOC[::-1]]}, "negative"
    )
    assert differences("voc2012", known, "ignore") == []  # nothing is published of these
    assert differences("folder", known, "negative") == []


def test_the_published_counts_of_voc_2012_agree_with_each_other():
    published = DATA_SETS["voc2012"].published
    mean = sum(published.positives["train"]) / published.images["train"]
    assert round(mean, 4) == published.labels_per_image["train"]


@pytest.mark.parametrize(("names", "count"), [(VOC, 20), (COCO, 80), (NUS, 81)])
def test_the_shipped_class_lists_are_the_published_ones(names: list[str], count: int):
    assert len(set(names)) == count
    kinds = {"voc2012": VOC, "coco2014": COCO, "nuswide_spml": NUS}
    kind = next(k for k, v in kinds.items() if v is names)
    known = {"train": pd.DataFrame(np.zeros((0, count)), columns=names)}
    assert differences(kind, known, "ignore") == []
    assert set(DATA_SETS) >= set(kinds)


def test_the_shipped_class_lists_are_torchvisions_too():
    from torchvision.models._meta import _COCO_CATEGORIES, _VOC_CATEGORIES

    assert [name for name in _COCO_CATEGORIES if name not in ("N/A", "__background__")] == COCO
    assert sorted(_VOC_CATEGORIES[1:]) == VOC


def test_prompts_use_the_words_of_the_class_list():
    words = class_list(str(CLASSES / "voc.txt"))
    assert words["diningtable"] == "dining table"
    assert words["tvmonitor"] == "tv monitor"
    assert words["cat"] == "cat"


def test_nuswides_sky_stands_where_the_lists_have_it():
    assert NUS.index("sky") == 55
    assert sorted(NUS) == NUS


def test_own_labels_may_be_lines_of_names_or_numbers(tmp_path: Path):
    path = tmp_path / "labels.txt"
    path.write_text("\ufeffa.jpg cat dog\nb/c.jpg 0\r\nd.jpg", newline="")
    known = label_table.labels(str(path), ["dog", "cat"]).set_index("image_id")
    assert known.to_dict("index") == {
        "a.jpg": {"dog": 1, "cat": 1},
        "b/c.jpg": {"dog": 1, "cat": 0},
        "d.jpg": {"dog": 0, "cat": 0},
    }  # fmt: skip
    path.write_text("a.jpg cow\n")
    with pytest.raises(UserError, match="'cow' is neither a class .* nor a number from 0 to 1"):
        label_table.labels(str(path), ["dog", "cat"])
    path.write_text("a.jpg cat\na.jpg dog\n")
    with pytest.raises(UserError, match="the image 'a.jpg' comes twice"):
        label_table.labels(str(path), ["dog", "cat"])


def test_own_labels_may_be_of_cocos_form(tmp_path: Path):
    path = tmp_path / "own.json"
    content: dict[str, Any] = {
        "images": [{"id": 5, "file_name": "x/a.jpg"}, {"id": 3, "file_name": "b.jpg"}],
        "categories": [{"id": 9, "name": "cat"}, {"id": 4, "name": "dog"}],
        "annotations": [{"image_id": 5, "category_id": 9}],
    }
    path.write_text(json.dumps(content))
    known = label_table.labels(str(path), ["cat", "dog"]).set_index("image_id")
    assert known.to_dict("index") == {
        "x/a.jpg": {"cat": 1, "dog": 0}, "b.jpg": {"cat": 0, "dog": 0}
    }  # fmt: skip
    with pytest.raises(UserError, match=r"ends neither in .csv nor in .txt nor in .json"):
        label_table.labels("labels.xml", ["cat"])


@pytest.mark.parametrize("kind", ["voc2012", "coco2014", "nuswide", "nuswide_spml"])
def test_the_stages_index_a_published_layout_and_its_labels(
    laid_out: Path, warm: dict[str, str], tmp_path: Path, kind: str
):
    """The whole way from files to artifacts, with the warnings of a set that is too small."""
    shutil.copytree(laid_out, tmp_path / "p")
    project = Project(tmp_path / "p", warm)
    root = project / "data/set"
    if kind == "voc2012":
        write_voc(root, "2012", VOC12)
        where, names = "VOC2012/ImageSets/Main", "voc"
    elif kind == "coco2014":
        write_coco(root)
        where, names = "annotations", "coco"
    else:
        write_nuswide(root)
        where = "spml" if kind == "nuswide_spml" else "Groundtruth/TrainTestLabels"
        names = "nuswide"
    project.set(
        source__kind=kind,
        source__root="data/set",
        source__classes=f"stages/sources/classes/{names}.txt",
        source__labels=f"data/set/{where}",
        source__test_folder="",
    )
    project.stage("check")
    said = project.stage("index").stderr
    assert f"warning: {kind} train has" in said
    index = pd.read_parquet(project / "data/index.parquet")
    assert (index["status"] == "ok").all()
    assert (index["width"] == 50).all()
    project.stage("ground_truth")
    known = pd.read_parquet(project / "data/ground_truth.parquet")
    assert list(known["image_id"]) == list(index["image_id"])
    assert known.drop(columns="image_id").to_numpy().sum() > 0


def test_a_listed_image_without_a_file_is_a_row_with_a_status(voc12: Path):
    (voc12 / "VOC2012/JPEGImages/2008_000015.jpg").unlink()
    found = photographs("voc2012", str(voc12), "")
    assert len(found) == 4
    from stages.images.decode import inspect

    missing = inspect(Path(found[1].path), 10**8)
    assert (missing.status, missing.error) == ("unreadable", "No such file or directory")
