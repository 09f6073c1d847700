"""`official` does step by step what the published script does, restated in published_script.py."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import torchvision
import xarray
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file
from scipy.stats import ks_2samp
from torch import nn

from demo.scenes import draw_photo
from stages.cam_boxes import augmented_scores
from stages.images.crops import CropRule, crop_size
from stages.method.average_precision import published_training_map
from stages.method.cam import first_last_box
from stages.method.stopping import published_stop
from stages.method.views import search_parts, search_threshold
from stages.models.student import Student
from stages.training.augment import strong
from tests import published_script as script
from tests.conftest import MINI_CLASSES, Project, lay_out, write_tiny_teacher

STAGES = (
    "check", "index", "answers", "weights", "class_text", "global_clip", "bias", "student_features",
    "warmup", "cam_boxes", "local_clip", "fuse_labels", "train",
)  # fmt: skip
GLOBAL, SIDE, TRAINED, FACTOR, LIMIT = 64, 96, 64, 20.0, 1.2
# an untrained tower sees little difference, which a unit vector enlarges with its rounding errors
NEAR = 2e-3
QUIRKS = {
    "teacher__normalisation": "imagenet",
    "student__arch": "resnet18",
    "student__weights": "random",
    "student__output_stride": 32,
    "student__head": "library",
    "student__boost": 3.0,
    "global_clip__view_size": GLOBAL,
    "labels__temperature": 1 / FACTOR,
    "labels__precision": "half",
    "bias__entropy_limit": LIMIT,
    "bias__entropy_unit": "nats",
    "bias__min_count": 1,
    "optimiser__lr": 1e-3,
    "warmup__epochs": 2,
    "cam_boxes__selection": "search",
    "cam_boxes__mean_views": 2.5,
    "cam_boxes__threshold": 0.6,
    "cam_boxes__input_size": SIDE,
    "cam_boxes__box": "first_last",
    "cam_boxes__offset": 0.125,
    "local_clip__view_size": SIDE,
    "local_clip__source": "resized",
    "local_clip__rounding": "pixel",
    "fuse_labels__no_view": "zeros",
    "fuse_labels__alpha": 0.2,
    "train__epochs": 3,
    "train__stop": "published",
    "train__stop_positive": 1.0,
}


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> Project:
    """A finished project with the script's ways, of more than a hundred training images."""
    root = tmp_path_factory.mktemp("official") / "project"
    root.mkdir()
    lay_out(root, train=104)
    shutil.rmtree(root / "teacher")
    write_tiny_teacher(root / "teacher", tuple(script.MEAN), tuple(script.STD))
    project = Project(root, warm)
    project.set(**QUIRKS)
    for stage in STAGES:
        project.stage(stage)
    return project


def table(project: Project, name: str) -> pd.DataFrame:
    return pd.read_parquet(project / f"data/{name}.parquet")


def labels(project: Project, name: str) -> pd.DataFrame:
    return table(project, name).set_index("image_id")


def embeddings(project: Project, name: str) -> np.ndarray:
    store = xarray.open_zarr(project / f"data/{name}.zarr", consolidated=False)
    return store["embedding"].to_numpy()


def same_but_for_ties(expected: np.ndarray, scores: pd.DataFrame) -> np.ndarray:
    """The scores, which are the expected ones bit by bit but for a few.

    Where a product lies halfway between two numbers of half precision, the processor's order of
    sums decides; a step near 20 is 1/64, by which two probabilities change at most by 1/32.
    """
    found = scores.to_numpy()
    assert (found == expected).mean() > 0.95
    assert np.allclose(found, expected, rtol=1 / 32, atol=2**-24)
    return found


@pytest.fixture(scope="module")
def train(official: Project) -> pd.DataFrame:
    index = table(official, "index")
    return index[index["split"] == "train"]


@pytest.fixture(scope="module")
def tower(official: Project) -> Any:
    with torch.no_grad():
        return open_clip.create_model(f"local-dir:{official / 'teacher'}").visual.eval()


@pytest.fixture(scope="module")
def student(official: Project) -> tuple[Any, nn.Conv2d]:
    """The warmed-up student as torchvision's own network."""
    tensors = load_file(official / "data/warmup/student.safetensors")
    network: Any = torchvision.models.resnet18(weights=None)
    backbone = {n[9:]: v for n, v in tensors.items() if n.startswith("backbone.")}
    assert set(network.load_state_dict(backbone, strict=False).missing_keys) == {
        "fc.weight", "fc.bias"
    }  # fmt: skip
    head = nn.Conv2d(512, len(MINI_CLASSES), 1)
    head.load_state_dict({n[5:]: v for n, v in tensors.items() if n.startswith("head.")})
    return network.eval(), head


@torch.no_grad()
def test_the_teacher_sees_what_the_script_shows_it(official, tower, train):
    own = embeddings(official, "global_clip")
    for row in train.index[::23]:
        image = script.load(official / train.loc[row, "path"], GLOBAL)
        assert np.allclose(own[row], script.embed(tower, image), atol=NEAR)


def test_initial_labels_are_rounded_floored_divided_and_clipped(official, train):
    images, texts = embeddings(official, "global_clip"), embeddings(official, "class_text")
    p = np.stack([script.softmax_in_half(images[row], texts, FACTOR) for row in train.index])
    p = same_but_for_ties(p, labels(official, "global_scores").loc[train["image_id"]])
    bias = script.bias_of(p, LIMIT)
    assert not np.isnan(bias).any()
    assert np.allclose(table(official, "bias")["bias"], bias, rtol=1e-6)
    expected = [script.initial_label(row, bias, 1 / len(bias)) for row in p]
    assert np.allclose(labels(official, "initial_labels"), expected, atol=1e-6)
    assert (np.array(expected) == 1).any()
    assert (p < 1 / len(bias)).any()


def searched(official: Project, student: tuple[Any, nn.Conv2d], train: pd.DataFrame) -> np.ndarray:
    """Scores of the shuffled, augmented images that the search counts: the first 101."""
    network, head = student
    torch.manual_seed(0)
    rows = torch.randperm(len(train)).tolist()[:101]
    mirrored = torch.rand(len(rows)) < 0.5
    scores = []
    for row, mirror in zip(rows, mirrored, strict=True):
        image = script.load(official / train["path"].iloc[row], TRAINED)
        maps = script.maps_of(network, head, 3.0, image.flip(-1) if mirror else image)
        scores.append(maps.mean(dim=(1, 2)).sigmoid().numpy())
    return np.stack(scores)


@torch.no_grad()
def test_the_search_looks_at_shuffled_and_mirrored_images(official, student, train, monkeypatch):
    monkeypatch.chdir(official.root)
    own = Student.load(Path("data/warmup/student.safetensors"), "cpu")
    (found,) = augmented_scores(own, train, 0)
    assert np.allclose(found, searched(official, student, train), atol=1e-4)


def chosen(official: Project, student: tuple[Any, nn.Conv2d], train: pd.DataFrame) -> np.ndarray:
    threshold = script.threshold_of(searched(official, student, train), 0.6, 1.5)
    assert threshold > 0.6  # a step was taken
    found = []
    for path in train["path"]:
        maps = script.maps_of(*student, 3.0, script.load(official / path, SIDE))
        found.append((maps.mean(dim=(1, 2)).sigmoid() >= threshold).numpy())
    return np.stack(found)


@torch.no_grad()
def test_classes_boxes_and_crops_are_the_scripts(official, student, tower, train):
    picked = chosen(official, student, train)
    boxes = table(official, "cam_boxes")
    pairs = {(i, c) for i, c in zip(boxes["image_id"], boxes["class"], strict=True)}
    assert pairs == {
        (image, MINI_CLASSES[c])
        for image, row in zip(train["image_id"], picked, strict=True)
        for c in np.flatnonzero(row)
    }
    assert not picked.any(axis=1).all()  # an image without a view is among them
    crops = embeddings(official, "local_clip")
    network, head = student
    for position in range(0, len(boxes), max(1, len(boxes) // 25)):
        box = boxes.iloc[position]
        path = train.set_index("image_id").loc[box["image_id"], "path"]
        image = script.load(official / path, SIDE)
        cam = script.maps_of(network, head, 3.0, image)[MINI_CLASSES.index(box["class"])]
        expected = script.box_of(cam, SIDE, 0.95, 12)
        assert tuple(box[["u0", "v0", "u1", "v1"]]) == expected
        view = script.crop(image, expected, SIDE)
        assert np.allclose(crops[position], script.embed(tower, view), atol=NEAR)


def test_updated_labels_mix_in_zeros_where_there_is_no_view(official):
    boxes, texts = table(official, "cam_boxes"), embeddings(official, "class_text")
    crops = embeddings(official, "local_clip")
    p = np.stack([script.softmax_in_half(crop, texts, FACTOR) for crop in crops])
    p = same_but_for_ties(p, table(official, "local_scores")[list(MINI_CLASSES)])
    bias = table(official, "bias")["bias"].to_numpy(np.float64)
    initial, pseudo = labels(official, "initial_labels"), labels(official, "pseudo_labels")
    for image_id, label in initial.iterrows():
        views = p[(boxes["image_id"] == image_id).to_numpy()]
        expected = script.fused(label.to_numpy(), views, bias, 0.25, 0.2)
        assert np.allclose(pseudo.loc[image_id], expected, atol=1e-6)
    assert (~initial.index.isin(boxes["image_id"])).any()


def test_the_kept_epoch_is_the_one_after_the_minimum_since_the_first_epoch(official):
    warmup = pd.read_csv(official / "data/warmup/history.csv")
    history = pd.read_csv(official / "data/classifier/history.csv")
    found = script.stop_epoch([*warmup["exact_mAP"], *history["exact_mAP"]])
    kept = history.loc[history["kept"] == 1, "epoch"].item()
    assert found is not None
    assert kept == found - len(warmup) + 1


percent = st.floats(0, 100).map(lambda v: round(v, 2))


@given(st.lists(percent, min_size=1, max_size=10))
def test_the_stop_rule_equals_the_scripts(history: list[float]):
    assert published_stop(history) == script.stop_epoch(history)


def test_the_stop_rule_keeps_the_epoch_after_the_minimum():
    assert published_stop([10, 30, 40, 45, 55, 56]) == 4  # gains 20, 10, 5, 10
    assert published_stop([10, 30, 40, 45]) is None


@given(
    st.integers(1, 420),
    arrays.arrays(np.float32, (4, 5), elements=st.floats(0, 1, width=32)),
    st.sampled_from([0.05, 0.3, 0.5]),
)
def test_the_search_equals_the_scripts(images: int, some: np.ndarray, start: float):
    scores = np.resize(some, (images, 5))
    ends = np.cumsum(search_parts(images))
    found, _ = search_threshold(np.split(scores, ends)[:-1], start, 2.0)
    assert found == script.threshold_of(scores, start, 1.0)


def test_a_search_that_runs_out_of_images_says_so():
    two_each, nothing = np.full((101, 2), 0.9), np.zeros((101, 2))
    assert search_threshold([two_each], 0.5, 2.0) == (0.5, True)
    assert search_threshold([nothing, nothing[1:]], 0.5, 2.0) == (pytest.approx(0.502), False)
    assert search_threshold([], 0.5, 2.0) == (0.5, False)


def test_a_crops_sides_are_those_that_the_script_computes():
    """Every box of an image of 640 pixels, along a tenth of its sides."""
    less = 0
    for width in range(32, 641, 11):
        for height in range(32, 641, 3):
            own = crop_size((0, 0, width, height), CropRule(640, rounding="pixel"), 32)
            height_of, width_of = script.crop_size((0, 0, width, height), 640)
            assert own == (max(32, width_of), max(32, height_of))
            less += max(own) < 640
    assert less > 500  # the longer side itself


@given(arrays.arrays(np.float32, (6, 7), elements=st.sampled_from([-1.0, 0.0, 0.5, 0.99, 1.0])))
def test_the_box_equals_the_scripts(cam: np.ndarray):
    if cam.min() == cam.max():  # there the script crashes
        x0, y0, x1, y1 = first_last_box(cam, 0.95)
        assert (x0, y0) == (x1, y1) == (0, 0)
        return
    square = torch.from_numpy(cam[:6, :6].copy())
    if square.min() < square.max():
        expected = script.box_of(square, 6, 0.95, 0)
        own = [round(v * 6) for v in first_last_box(square.numpy(), 0.95)]
        assert tuple(own) == expected


@given(
    arrays.arrays(np.float32, (8, 3), elements=st.sampled_from([0.0, 0.5, 1.0])),
    arrays.arrays(np.float32, (8, 3), elements=st.floats(0, 1, width=32)),
)
def test_the_training_map_counts_labels_of_exactly_one(labels: np.ndarray, scores: np.ndarray):
    own = published_training_map(labels, scores)
    assert own == pytest.approx(script.training_map(labels, scores))


def test_the_published_recipe_has_these_ways():
    """What the fixture sets is what the preset says, but for sizes and the tiny networks."""
    from ruamel.yaml import YAML

    from stages.command.preset import preset

    content = YAML(typ="safe").load(preset("voc12", "official"))
    for name in (
        "teacher__normalisation", "student__head", "student__boost", "labels__precision",
        "bias__entropy_unit", "bias__min_count", "cam_boxes__selection", "cam_boxes__box",
        "cam_boxes__offset", "local_clip__source", "local_clip__rounding", "fuse_labels__no_view",
        "fuse_labels__alpha", "train__stop",
    ):  # fmt: skip
        section, key = name.split("__")
        assert content[section][key] == QUIRKS[name], name


def test_every_file_of_the_restatement_stays_out_of_the_product():
    stages = Path(__file__).parent.parent / "stages"
    assert not any("published_script" in f.read_text() for f in stages.rglob("*.py"))


def test_strong_views_are_distributed_as_those_that_the_script_composes():
    """Mirroring and colour jitter, drawn often: torchvision's on Pillow's images, and ours."""
    torch.manual_seed(0)
    photos = [draw_photo(np.random.default_rng([3, n]))[0].resize((48, 48)) for n in range(20)]
    tensors = torch.stack([torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in photos])
    published = torchvision.transforms.Compose([
        torchvision.transforms.ColorJitter(0.5, 0.5, 0.5, 0.5),
        torchvision.transforms.RandomHorizontalFlip(),
        torchvision.transforms.PILToTensor(),
    ])  # fmt: skip

    def described(views: torch.Tensor) -> torch.Tensor:
        """Mean and deviation of each channel, colourfulness, and left against right."""
        x = views / 255
        spread = (x.amax(1) - x.amin(1)).mean(dim=(1, 2))
        sides = x[..., :24].mean(dim=(1, 2, 3)) - x[..., 24:].mean(dim=(1, 2, 3))
        return torch.column_stack([x.mean(dim=(2, 3)), x.std(dim=(2, 3)), spread, sides])

    ours = torch.cat([described(strong(tensors, (0.5,) * 4)) for _ in range(60)])
    theirs = torch.cat([described(torch.stack([published(p) for p in photos])) for _ in range(60)])
    for own, other in zip(ours.T, theirs.T, strict=True):
        assert ks_2samp(own.numpy(), other.numpy()).pvalue > 0.001
