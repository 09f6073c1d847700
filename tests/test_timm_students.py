"""Networks of timm's as students: their own maps, trained, saved, loaded, the same again."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from stages.models.backbones import build_backbone
from stages.models.student import Student, StudentConfig, build_student, logits_of
from stages.models.teacher import ModelShape, Preprocess, TeacherConfig
from stages.models.weights import save_weights
from stages.runtime.errors import UserError
from stages.training.network import set_training_mode
from stages.weights import backbone_config, first_weights
from tests.conftest import Project

NETWORKS = {
    "mobilenetv3_large_100": 32,
    "tf_efficientnet_lite0": 32,
    "convnextv2_atto": 32,
    "fastvit_t8": 32,
    "vit_tiny_patch16_224": 16,
    "fasternet_t0": 32,
}
NO_TEACHER = TeacherConfig(
    model_cfg=ModelShape(embed_dim=1, vision_cfg={}),
    preprocess_cfg=Preprocess(mean=(0.1,) * 3, std=(0.2,) * 3),
)


def config_of(name: str, stride: int) -> StudentConfig:
    first = backbone_config(f"timm/{name}", stride, "random", NO_TEACHER)
    more = {"batch_norm": "frozen", "boost": 3.0, "head": "prior", "precision": "float32"}
    return StudentConfig.model_validate(
        first.model_dump() | more | {"size": 64, "classes": ("a", "b", "c")}
    )


@pytest.mark.parametrize(("name", "stride"), NETWORKS.items())
def test_it_learns_and_is_read_back_the_same(name: str, stride: int, tmp_path: Path):
    torch.manual_seed(0)
    config = config_of(name, stride)
    student = build_student(config)
    views = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    other = torch.zeros(1, 3, 4 * stride, 3 * stride)
    assert student.eval().class_activation_maps(other).shape == (1, 3, 4, 3)
    set_training_mode(student, config.batch_norm)
    optimiser = torch.optim.Adam(student.parameters(), 1e-3)
    before = [p.detach().clone() for p in student.parameters()]
    student(views).square().mean().backward()
    optimiser.step()
    changed = [bool((a != b).any()) for a, b in zip(before, student.parameters(), strict=True)]
    assert sum(changed) > 0.9 * len(changed)
    path = tmp_path / "student.safetensors"
    save_weights(path, student.state_dict(), config)
    student.eval()
    with torch.no_grad():
        own = logits_of(student.class_activation_maps(student._inputs(views)))
    read = Student.load(path, "cpu")
    assert read.config.mean == tuple(timm.get_pretrained_cfg(name).mean)
    assert torch.allclose(read.scores(views), own.sigmoid(), atol=1e-5)


def test_a_network_without_one_map_is_refused():
    config = backbone_config("timm/crossvit_tiny_240", 16, "random", NO_TEACHER)
    with pytest.raises(UserError, match="crossvit_tiny_240 gives no map at 16: "):
        build_backbone(config)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_weights_of_timms_own_names_are_taken_whole(name: str, tmp_path: Path):
    torch.manual_seed(1)
    network = timm.create_model(name).eval()
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    config = backbone_config(f"timm/{name}", NETWORKS[name], "checkpoint", NO_TEACHER)
    tensors = first_weights(config, None, str(tmp_path / "own.safetensors"), 0)
    trunk, _ = build_backbone(config)
    trunk.load_state_dict(tensors)
    size = network.pretrained_cfg["input_size"][-1]
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        features = network.forward_features(images)
        if features.ndim == 3:
            features = features[:, 1:].transpose(1, 2).reshape(1, -1, size // 16, size // 16)
        assert torch.allclose(trunk.eval()(images), features, atol=1e-4)


def test_a_stride_of_16_is_had_where_timm_can_make_it():
    trunk, _ = build_backbone(config_of("tf_efficientnet_lite0", 16))
    assert trunk.eval()(torch.zeros(1, 3, 64, 64)).shape[-2:] == (4, 4)


def test_a_network_that_timm_does_not_know_and_a_stride_it_does_not_have_are_named():
    with pytest.raises(UserError, match=r"timm has no resnet_18; did you mean .*resnet18"):
        build_backbone(config_of("tf_efficientnet_lite0", 32).model_copy(
            update={"arch": "timm/resnet_18"}
        ))  # fmt: skip
    with pytest.raises(UserError, match=r"gives no map at 32: it makes 4 x 4 cells of 64"):
        build_backbone(config_of("vit_tiny_patch16_224", 32))


def test_without_a_network_published_weights_are_one_line(cold_project: Project):
    cold_project.set(
        student__arch="timm/tf_efficientnet_lite0",
        student__weights="published",
        student__output_stride=32,
    )
    done = cold_project.stage("weights", check=False, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "student.weights in params.yaml: timm/tf_efficientnet_lite0 cannot be fetched" in last


def test_a_whole_run_with_a_student_of_timms(project: Project):
    project.set(
        student__arch="timm/tf_efficientnet_lite0",
        student__weights="random",
        student__output_stride=32,
        student__batch_norm="frozen",
    )
    ran = project.repro()
    assert {"weights", "warmup", "cam_boxes", "train", "evaluate"} <= set(ran)
    done = project.run("ccd", "predict", "photos/test/00000.jpg")
    assert '"status": "ok"' in done.stdout
