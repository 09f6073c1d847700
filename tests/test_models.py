"""The teacher's tower at any size, the student's maps, and weights on disk."""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from open_clip import create_model
from open_clip.modified_resnet import AttentionPool2d
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from bench.made_up import write_teacher
from stages.models.attention import attention_pool, interpolate_positions
from stages.models.folding import fold_batch_norm
from stages.models.foreign import load_teacher
from stages.models.student import Student, StudentConfig, build_student, logits_of
from stages.models.teacher import Teacher
from stages.models.weights import TeacherNote, load_weights, save_weights
from stages.runtime.errors import UserError
from stages.runtime.params import Teacher as TeacherParams
from tests.conftest import Project, write_tiny_teacher

TOWER = {"layers": [1, 1, 1, 1], "width": 8}


@pytest.fixture(scope="module")
def teacher(finished: Project) -> Teacher:
    return Teacher(finished / "data/weights/teacher", "cpu")


def given(model: str, pretrained: str = "none", **others: object) -> TeacherParams:
    values = {"checkpoint": "data/none", "sha256": "none", "normalisation": "own"} | others
    values["checkpoint"] = str(values["checkpoint"])
    return TeacherParams(model=model, pretrained=pretrained, **values)


def views(n: int, height: int, width: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=g, dtype=torch.uint8)


def test_at_its_native_size_the_tower_is_open_clips_own(teacher: Teacher):
    images = views(3, 64, 64)
    exact = create_model(f"local-dir:{teacher.folder}").eval().double()
    own = exact.encode_image((images.double() / 255 - 0.5) / 0.25, normalize=True)
    assert torch.allclose(teacher.embed_images(images).double(), own, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 3), (5, 2), (1, 4)])
def test_positions_are_interpolated_bilinearly_and_the_mean_token_is_kept(height: int, width: int):
    table = torch.randn(5, 6)
    result = interpolate_positions(table, height, width, "bilinear")
    assert torch.equal(result[0], table[0])
    for row in range(height):  # bilinear with pixel centres, clamped at the border, by hand
        for column in range(width):
            y = min(max((row + 0.5) * 2 / height - 0.5, 0), 1)
            x = min(max((column + 0.5) * 2 / width - 0.5, 0), 1)
            expected = sum(
                (y if r else 1 - y) * (x if c else 1 - x) * table[1 + 2 * r + c]
                for r in range(2)
                for c in range(2)
            )
            assert torch.allclose(result[1 + row * width + column], expected, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (3, 5)])
def test_the_attention_pool_equals_one_built_for_that_grid(height: int, width: int):
    torch.manual_seed(0)
    pool = AttentionPool2d(2, 64, 4, 16)
    features = torch.randn(2, 64, height, width)
    positions = interpolate_positions(pool.positional_embedding, height, width, "bilinear")
    built = AttentionPool2d(2, 64, 4, 16)
    built.load_state_dict(pool.state_dict())
    built.positional_embedding = nn.Parameter(positions)
    assert torch.allclose(attention_pool(pool, features, positions), built(features), atol=1e-6)


def test_views_of_any_multiple_of_the_stride_have_unit_embeddings(teacher: Teacher):
    for size in ((96, 96), (32, 160), (160, 64)):
        embedding = teacher.embed_images(views(2, *size))
        assert embedding.shape == (2, 16)
        assert embedding.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_a_class_is_the_unit_mean_of_its_prompts(teacher: Teacher):
    one, two = teacher.embed_class(["a star"]), teacher.embed_class(["the star"])
    both = teacher.embed_class(["a star", "the star"])
    assert torch.allclose(both, F.normalize(one + two, dim=0), atol=1e-6)


def test_the_temperature_is_the_teachers_own(teacher: Teacher):
    assert teacher.temperature == pytest.approx(1 / 12, rel=1e-4)


def test_teacher_weights_that_were_changed_are_refused(finished: Project, tmp_path: Path):
    for file in (finished / "data/weights/teacher").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(UserError, match="digests differ"):
        Teacher(tmp_path, "cpu")


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"state_dict": Evil()}))
    with pytest.raises(UserError, match="cannot be loaded") as said:
        load_teacher(given("RN50", checkpoint=tmp_path / "evil.pt"))
    assert "weights_only" not in str(said.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("RN5O", "openai", "open_clip knows no 'RN5O'"),
        ("RN50", "opnai", "RN50 has no 'opnai', but openai"),
        ("RN50x64", "openai", "use RN50x64-quickgelu"),
        ("local-dir", "none", "holds no open_clip_config.json"),
    ],
)
def test_an_unknown_model_or_tag_is_named(name: str, tag: str, expected: str, tmp_path: Path):
    wanted = given(name, tag) if tag != "none" else given(name, checkpoint=tmp_path)
    with pytest.raises(UserError, match=expected):
        load_teacher(wanted)


def test_without_a_network_a_pretrained_tag_is_one_line(cold_project: Project):
    cold_project.set(
        teacher__model="RN50-quickgelu",
        teacher__pretrained="openai",
        teacher__checkpoint="data/none",
    )
    done = cold_project.stage("weights", check=False, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "teacher in params.yaml: openai cannot be loaded" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_state_dict_file_of_a_named_model_is_loaded(tmp_path: Path):
    import open_clip

    model = open_clip.create_model("RN50", precision="fp32")
    torch.save(model.state_dict(), tmp_path / "rn50.pt")
    loaded, config = load_teacher(given("RN50", checkpoint=tmp_path / "rn50.pt"))
    assert torch.equal(loaded.visual.conv1.weight, model.visual.conv1.weight)
    assert config.preprocess_cfg.mean == pytest.approx([0.4815, 0.4578, 0.4082], abs=1e-4)


def student_of(
    arch: str, stride: int, classes: int = 3, boost: float = 3.0, head: str = "prior"
) -> Student:
    torch.manual_seed(0)
    config = StudentConfig(
        arch=arch, output_stride=stride, weights="random", mean=(0.5,) * 3, std=(0.25,) * 3,
        tower=TOWER, batch_norm="batch", boost=boost, head=head, precision="float32", size=64,
        classes=tuple(map(str, range(classes))),
    )  # fmt: skip
    return build_student(config).eval()


@pytest.mark.parametrize("arch", ["teacher_tower", "resnet18", "resnet34", "resnet50"])
@pytest.mark.parametrize("stride", [16, 32])
def test_maps_have_the_stride_asked_for(arch: str, stride: int):
    maps = student_of(arch, stride).class_activation_maps(torch.randn(2, 3, 96, 64))
    assert maps.shape == (2, 3, 96 // stride, 64 // stride)


def test_at_stride_32_the_tower_is_open_clips_own_trunk():
    from open_clip.modified_resnet import ModifiedResNet

    tower = ModifiedResNet(TOWER["layers"], 4, 1, 64, TOWER["width"]).eval()
    student = student_of("teacher_tower", 32)
    student.backbone.load_state_dict(tower.state_dict(), strict=False)
    images = torch.randn(2, 3, 64, 64)
    x = tower.stem(images)
    for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        x = layer(x)
    assert torch.allclose(student.backbone(images), x, atol=1e-5)


def test_the_boost_multiplies_positive_activations_alone():
    images = torch.randn(1, 3, 64, 64)
    plain, boosted = (student_of("resnet18", 32, boost=b) for b in (1.0, 3.0))
    maps = plain.class_activation_maps(images)
    assert (maps > 0).any() or (plain.head.bias.data.fill_(0.1) is not None)
    boosted.load_state_dict(plain.state_dict())
    maps = plain.class_activation_maps(images)
    expected = torch.where(maps > 0, 3 * maps, maps)
    assert torch.allclose(boosted.class_activation_maps(images), expected)


def test_the_logit_is_the_mean_of_the_map():
    maps = torch.randn(2, 3, 4, 5)
    assert torch.allclose(logits_of(maps)[1, 2], maps[1, 2].sum() / 20)


class Logits(nn.Module):
    """A student as the oracles of maps take it."""

    def __init__(self, student: Student):
        super().__init__()
        self.student = student

    def forward(self, images):
        return logits_of(self.student.class_activation_maps(images))


def test_the_maps_are_those_of_grad_cam():
    """With global average pooling and a 1x1 head the two differ by a factor and the ReLU alone."""
    student = student_of("resnet18", 32, boost=1.0)
    nn.init.normal_(student.head.weight, std=0.1)

    images = torch.randn(1, 3, 96, 96)
    for c in range(3):
        with GradCAM(model=Logits(student), target_layers=[student.backbone.layer4]) as cam:
            oracle = cam(input_tensor=images, targets=[ClassifierOutputTarget(c)])[0]
        with torch.no_grad():
            own = student.class_activation_maps(images)[0, c] - student.head.bias[c]
        own = own.clamp(min=0)[None, None]
        own = F.interpolate(own, size=96, mode="bilinear")[0, 0].numpy()
        span = own.max() - own.min()
        assert np.corrcoef(own.ravel(), oracle.ravel())[0, 1] > 0.98 or span < 1e-6


def test_the_head_expects_one_positive_class_an_image():
    student = student_of("resnet18", 32, classes=20)
    assert float(student.head.bias[0].detach().sigmoid()) == pytest.approx(1 / 20, abs=1e-6)
    assert math.isfinite(float(student_of("resnet18", 32, classes=1).head.bias[0].detach()))


def test_weights_are_read_back_and_damage_is_noticed(tmp_path: Path):
    path = tmp_path / "w" / "a.safetensors"
    save_weights(path, {"x": torch.arange(3.0)}, TeacherNote(model="none"))
    tensors, note = load_weights(path, TeacherNote)
    assert tensors["x"].tolist() == [0, 1, 2]
    assert note.model == "none"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="digests differ"):
        load_weights(path, TeacherNote)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        load_weights(path, TeacherNote)
    save_weights(path, {"x": torch.arange(3.0)}, TeacherNote(model="none"))
    path.unlink()
    with pytest.raises(UserError, match="is not there"):
        load_weights(path, TeacherNote)


def test_the_teacher_is_the_one_it_was_made_from(finished: Project, tmp_path: Path):
    write_tiny_teacher(tmp_path / "again")
    original = (tmp_path / "again/open_clip_model.safetensors").read_bytes()
    assert original == (finished / "teacher/open_clip_model.safetensors").read_bytes()
    import open_clip

    folder = finished / "data/weights/teacher"
    model = open_clip.create_model(f"local-dir:{folder}")
    assert torch.allclose(model.logit_scale.exp(), torch.tensor(12.0), rtol=1e-4)


def test_folding_batch_norm_leaves_what_the_network_computes():
    import torchvision
    from open_clip.modified_resnet import ModifiedResNet

    for network in (
        torchvision.models.resnet18(),
        torchvision.models.resnet50(),
        ModifiedResNet([1, 2, 1, 1], 8, 4, 64, 16),
    ):
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        network = network.double().eval()
        images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        before = network(images)
        assert fold_batch_norm(network, lambda images=images, network=network: network(images))
        assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        assert torch.allclose(network(images), before, rtol=1e-9)


def test_normalisations_that_hold_an_activation_keep_it_when_folded():
    """timm's do; dropping it made every score of a folded EfficientNet-Lite 1.0."""
    network = timm.create_model("tf_efficientnet_lite0", num_classes=5).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    network = network.double()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = network(images)
    assert fold_batch_norm(network, lambda: network(images))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert torch.allclose(network(images), before, rtol=1e-9)


def test_what_is_not_the_same_when_folded_is_left_as_it_was():
    """Here the convolution's result goes another way too, which no look at the layers shows."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            nn.init.constant_(self.norm.running_var, 4.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = self.conv(x)
            return self.norm(seen) + seen

    network, images = Branching().eval(), torch.randn(2, 3, 8, 8)
    before, names = network(images), [name for name, _ in network.named_parameters()]
    assert not fold_batch_norm(network, lambda: network(images))
    assert torch.equal(network(images), before)
    assert [name for name, _ in network.named_parameters()] == names


@pytest.mark.slow
def test_a_real_towers_embedding_does_not_depend_on_its_batch(tmp_path: Path):
    """Byte for byte, for ResNet-50's tower on a CPU."""
    write_teacher(tmp_path, "RN50-quickgelu")
    teacher = Teacher(tmp_path, "cpu")
    images = views(4, 224, 160)
    together = teacher.embed_images(images)
    for batch in (1, 3):
        parts = [teacher.embed_images(part) for part in images.split(batch)]
        assert torch.equal(torch.cat(parts), together)


@pytest.mark.slow
def test_half_precision_is_close_to_single(tmp_path: Path):
    write_teacher(tmp_path, "RN50-quickgelu")
    images = views(2, 96, 96)
    exact = Teacher(tmp_path, "cpu").embed_images(images)
    for precision in ("bfloat16", "float16"):
        close = Teacher(tmp_path, "cpu", precision).embed_images(images)
        assert close.dtype == torch.float32
        assert not torch.equal(close, exact)
        assert float((close * exact).sum(dim=1).min()) > 0.999
