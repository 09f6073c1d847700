"""ONNX Runtime in torch's place: it says the same, or the run ends with the reason."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stages.artifacts import GLOBAL_CLIP, LOCAL_CLIP
from stages.models import engine
from stages.models.engine import Exported, Graph, graph_of
from stages.models.teacher import Teacher
from stages.runtime.errors import UserError
from stages.storage.arrays import read_store
from tests.conftest import TINY_CLIP, Project
from tests.test_teachers import TINY_SIGLIP, TINY_VIT, random_views, write_local_dir

TINY_CONVOLUTIONS = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "tf_efficientnet_lite0", "image_size": 64},
    "text_cfg": TINY_CLIP["text_cfg"],
}
ANY, WIDE = (64, 64), (64, 96)


@pytest.mark.parametrize(
    ("tower", "shapes", "graphs"),
    [
        (TINY_CLIP, (ANY, WIDE, (96, 32)), 1),
        (TINY_CONVOLUTIONS, (ANY, WIDE, (65, 65)), 1),  # padded otherwise where a side is odd
        (TINY_VIT, (ANY, WIDE, ANY), 2),
        (TINY_SIGLIP, ((160, 160),), 1),
    ],
    ids=["resnet", "convolutions", "vit", "siglip"],
)
def test_a_tower_says_the_same_by_onnx_runtime(
    tmp_path: Path, tower: dict[str, Any], shapes: tuple[tuple[int, int], ...], graphs: int
):
    write_local_dir(tmp_path / "teacher", tower)
    own, other = (Teacher(tmp_path / "teacher", "cpu") for _ in range(2))
    other.use("onnxruntime", "global_clip.engine")
    assert isinstance(other.look, Exported)
    for height, width in shapes:
        views = random_views(5, height, width)
        expected = own.embed_images(views)
        other.embed_images(views)  # the first are seen by both
        other.look.network.forward = _never
        assert torch.allclose(other.embed_images(views), expected, atol=1e-5)
        del other.look.network.forward
    assert len(other.look.graphs) == graphs


def test_full_batches_of_a_light_tower_run_where_no_size_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_local_dir(tmp_path / "teacher", TINY_CONVOLUTIONS)
    own, other = (Teacher(tmp_path / "teacher", "cpu") for _ in range(2))
    monkeypatch.setenv("CCD_BATCH", "5")
    other.use("onnxruntime", "global_clip.engine")
    other.prepare(96, "global_clip.view_size", aspect_kept=True)
    assert isinstance(other.look, Exported)
    for shape in (ANY, WIDE, ANY):
        for count in (5, 2, 5):
            views = random_views(count, *shape)
            assert torch.allclose(other.embed_images(views), own.embed_images(views), atol=1e-5)
    assert set(other.look.of_full_batch) == {ANY, WIDE}
    other.look.of_shape.clear()  # no other session is asked
    other.look.of_shape |= dict.fromkeys((ANY, WIDE), Graph(b"", None))
    assert other.embed_images(random_views(5, *ANY)).isfinite().all()


def _never(images: Tensor) -> Tensor:
    raise AssertionError("torch was asked")


def test_a_graph_that_says_something_else_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    wrong = graph_of(nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 8, 8), "k")
    monkeypatch.setattr(engine, "graph_of", lambda *_: wrong)
    with pytest.raises(UserError, match=r"^k: of the first views ONNX Runtime says something else"):
        Exported(nn.Conv2d(3, 4, 1), "k")(torch.rand(2, 3, 8, 8))
    with pytest.raises(UserError, match="says something else"):  # of another shape
        Exported(nn.Conv2d(3, 5, 1), "k")(torch.rand(2, 3, 8, 8))


def test_a_network_that_cannot_be_exported_is_named_with_the_way_out():
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.linalg.eigvals(images).real

    with pytest.raises(UserError, match=r"^k: this network cannot be exported: .*`engine: torch`"):
        Exported(Odd(), "k")(torch.rand(2, 3, 8, 8))


def test_a_network_that_cannot_be_exported_does_not_flood_the_terminal(capfd):
    test_a_network_that_cannot_be_exported_is_named_with_the_way_out()
    assert capfd.readouterr().out == ""


def test_a_graph_of_a_fixed_number_of_images_is_not_taken_for_one_of_any():
    class Fixed(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3)).reshape(int(images.shape[0]), 3)

    for views in (torch.rand(1, 3, 8, 8), torch.rand(5, 3, 8, 8)):
        with pytest.raises(UserError, match="says something else"):
            Exported(Fixed(), "k")(views)


def test_what_is_not_finite_is_left_to_the_caller():
    class Odd(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3)).log()

    said = Exported(Odd(), "k")(-torch.rand(5, 3, 8, 8))
    assert said.shape == (5, 3)
    assert said.isnan().all()


def test_a_transformer_takes_views_of_one_shape_by_onnx_runtime(tmp_path: Path):
    write_local_dir(tmp_path / "vit", TINY_VIT)
    teacher = Teacher(tmp_path / "vit", "cpu")
    teacher.use("onnxruntime", "local_clip.engine")
    teacher.prepare(64, "local_clip.view_size", aspect_kept=False)
    with pytest.raises(UserError, match="`local_clip.view_size` keeps the views' aspect, but ONNX"):
        teacher.prepare(64, "local_clip.view_size", aspect_kept=True)


def test_graphs_of_many_shapes_may_not_take_all_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_local_dir(tmp_path / "vit", TINY_VIT)
    teacher = Teacher(tmp_path / "vit", "cpu")
    teacher.use("onnxruntime", "local_clip.engine")
    assert isinstance(teacher.look, Exported)
    monkeypatch.setattr(engine, "MEMORY", int(1.5 * teacher.look.weights))
    teacher.embed_images(random_views(1, *ANY))
    with pytest.raises(UserError, match=r"^local_clip.engine: .* let views be squares"):
        teacher.embed_images(random_views(1, *WIDE))


def test_another_engine_is_for_the_processor_and_an_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_local_dir(tmp_path / "vit", TINY_VIT)
    teacher = Teacher(tmp_path / "vit", "cpu")
    monkeypatch.setattr(teacher, "device", "cuda")
    with pytest.raises(UserError, match="`a.engine: onnxruntime` is for the processor"):
        teacher.use("onnxruntime", "a.engine")
    monkeypatch.setattr(teacher, "device", "cpu")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"^a.engine: onnxruntime is missing: `pip install"):
        teacher.use("onnxruntime", "a.engine")


@pytest.mark.parametrize("stage", ["global_clip", "local_clip"])
def test_a_stage_is_run_by_the_engine_of_its_own(
    project: Project, monkeypatch: pytest.MonkeyPatch, stage: str
):
    monkeypatch.chdir(project.root)
    store = {"global_clip": GLOBAL_CLIP, "local_clip": LOCAL_CLIP}[stage]
    before, of_torch = read_store(store)
    expected = before["embedding"][:]
    project.set(**{f"{stage}__engine": "onnxruntime"})
    project.stage(stage)
    after, of_other = read_store(store)
    assert (of_torch.get("engine"), of_other.get("engine")) == (None, "onnxruntime")
    assert not np.array_equal(after["embedding"][:], expected, equal_nan=True)
    np.testing.assert_allclose(after["embedding"][:], expected, atol=1e-5)
