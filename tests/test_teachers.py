"""Teachers as they are published: their files, their towers at other sizes, their words."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.modified_resnet import AttentionPool2d
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stages.images.normalise import IMAGENET_MEAN, IMAGENET_STD
from stages.models.attention import attention_pool, interpolate_positions
from stages.models.backbones import BackboneConfig, build_backbone
from stages.models.foreign import (
    keep_tokenizer,
    load_teacher,
    published_digest,
    read_foreign_weights,
    usual_preprocessing,
)
from stages.models.teacher import (
    Preprocess,
    Teacher,
)
from stages.models.weights import TeacherNote, save_weights
from stages.runtime.errors import UserError
from stages.storage.provenance import write_sums
from stages.weights import first_weights
from tests import published_script as script
from tests.conftest import TINY_CLIP, Project
from tests.test_models import given

TINY_VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64},
    "text_cfg": TINY_CLIP["text_cfg"],
}
TINY_SIGLIP = {  # timm's own miniature, put together as open_clip does SigLIP
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False,
        "timm_pool": "map", "timm_proj": "none",
    },
    "text_cfg": TINY_CLIP["text_cfg"],
}  # fmt: skip


def random_views(n: int, height: int, width: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, height, width), generator=g, dtype=torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "dim", "heads"), [(7, 2048, 32), (14, 4096, 64)], ids=["RN50", "RN50x64"]
)
@torch.no_grad()
def test_the_attention_pool_is_the_published_one_at_any_size(side: int, dim: int, heads: int):
    torch.manual_seed(0)
    pool = AttentionPool2d(side, dim, heads, 1024)
    for height, width in ((640, 640), (448, 448), (160, 639), (639, 160), (65, 33)):
        features = torch.randn(1, dim, script.grid_of(height), script.grid_of(width))
        table = interpolate_positions(
            pool.positional_embedding, *features.shape[-2:], mode="bilinear"
        )
        own = attention_pool(pool, features, table)[0]
        assert torch.allclose(own, script.attend(pool, features[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width"), [(160, 639), (95, 63), (64, 64), (127, 97), (32, 31 + 64)]
)
@torch.no_grad()
def test_a_tower_embeds_views_of_odd_sizes_as_published(finished, height: int, width: int):
    teacher = Teacher(finished / "data/weights/teacher", "cpu")
    views = random_views(1, height, width)
    expected = script.embed(teacher.tower, (views[0] / 255 - 0.5) / 0.25)
    assert torch.allclose(teacher.embed_images(views)[0], expected, atol=1e-4)


def backbone_of(arch: str, weights: str) -> BackboneConfig:
    return BackboneConfig(
        arch=arch, output_stride=32, weights=weights, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )


def write_local_dir(folder: Path, config: dict[str, Any]) -> Any:
    folder.mkdir(parents=True)
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess})
    (folder / "open_clip_config.json").write_text(text)
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
    save_weights(folder / "open_clip_model.safetensors", model.state_dict(), TeacherNote())
    write_sums(folder)
    return model


@torch.no_grad()
def test_a_transformer_is_resized_as_open_clip_does(tmp_path: Path):
    write_local_dir(tmp_path / "vit", TINY_VIT)
    for height, width in ((64, 64), (96, 96), (96, 64), (32, 160)):
        teacher = Teacher(tmp_path / "vit", "cpu")
        teacher.prepare(max(height, width), "a.b", aspect_kept=True)
        own = teacher.embed_images(random_views(2, height, width))
        resized = open_clip.create_model(
            f"local-dir:{tmp_path / 'vit'}", force_image_size=(height, width)
        ).eval()
        images = (random_views(2, height, width) / 255 - 0.5) / 0.25
        assert torch.allclose(own, resized.encode_image(images, normalize=True), atol=1e-5)


@torch.no_grad()
def test_a_tower_that_gives_its_tokens_too_is_understood(tmp_path: Path):
    """As CoCa's does."""
    config = json.loads(json.dumps(TINY_VIT))
    config["vision_cfg"]["output_tokens"] = True
    model = write_local_dir(tmp_path / "tokens", config)
    assert isinstance(model.visual(torch.zeros(1, 3, 64, 64)), tuple)
    teacher = Teacher(tmp_path / "tokens", "cpu")
    assert teacher.embed_images(random_views(2, 96, 64)).shape == (2, 16)


def test_a_grid_of_as_many_cells_but_another_shape_has_positions_of_its_own():
    table = torch.randn(17, 3)
    for mode in ("bilinear", "bicubic"):
        wide = interpolate_positions(table, 2, 8, mode)
        assert wide.shape == table.shape
        assert not torch.allclose(wide, table)


@torch.no_grad()
def test_a_timm_tower_is_resized_by_timm_and_takes_squares_only(tmp_path: Path):
    model = write_local_dir(tmp_path / "siglip", TINY_SIGLIP)
    teacher = Teacher(tmp_path / "siglip", "cpu")
    assert teacher.stride is None
    native = teacher.embed_images(random_views(1, 160, 160))
    images = (random_views(1, 160, 160) / 255 - 0.5) / 0.25
    assert torch.allclose(native, model.encode_image(images, normalize=True), atol=1e-5)
    teacher.prepare(224, "global_clip.view_size", aspect_kept=False)
    model.visual.set_input_size((224, 224))
    images = (random_views(1, 224, 224) / 255 - 0.5) / 0.25
    resized = teacher.embed_images(random_views(1, 224, 224))
    assert torch.allclose(resized, model.encode_image(images, normalize=True), atol=1e-5)
    with pytest.raises(UserError, match=r"`a.b` is 230; it must be a multiple of the tower's 16"):
        teacher.prepare(230, "a.b", aspect_kept=False)
    with pytest.raises(UserError, match="keeps the views' aspect, .* takes squares only"):
        teacher.prepare(160, "a.b", aspect_kept=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_base_w", "MobileCLIP-S1"])
@torch.no_grad()
def test_a_convolutional_tower_takes_any_shape_and_says_what_open_clip_says(
    tmp_path: Path, name: str
):
    given = open_clip.get_model_config(name)
    plain = write_local_dir(tmp_path / "model", given | {"text_cfg": TINY_CLIP["text_cfg"]})
    teacher = Teacher(tmp_path / "model", "cpu")
    assert teacher.stride == 32
    for height, width in ((256, 256), (96, 96), (64, 160)):
        teacher.prepare(max(height, width), "a.b", aspect_kept=True)
        views = random_views(1, height, width)
        said = plain.encode_image((views / 255 - 0.5) / 0.25, normalize=True)
        assert torch.allclose(teacher.embed_images(views), said, atol=1e-5)


def test_sizes_that_a_tower_cannot_take_are_refused(tmp_path: Path, finished: Project):
    write_local_dir(tmp_path / "vit", TINY_VIT)
    transformer = Teacher(tmp_path / "vit", "cpu")
    with pytest.raises(UserError, match=r"`a.b` is 100; it must be a multiple of .* stride, 16"):
        transformer.prepare(100, "a.b", aspect_kept=True)
    with pytest.raises(UserError, match="rounding: pixel` is for a teacher whose tower is a Res"):
        transformer.prepare(96, "a.b", aspect_kept=True, in_pixels=True)
    resnet = Teacher(finished / "data/weights/teacher", "cpu")
    resnet.prepare(96, "a.b", aspect_kept=True, in_pixels=True)
    with pytest.raises(UserError, match=r"multiple of the tower's stride, 32"):
        resnet.prepare(100, "a.b", aspect_kept=False)


@pytest.fixture(scope="module")
def tiny_name(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model of OpenAI's kind that open_clip knows by name, beside one without QuickGELU."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-plain.json").write_text(json.dumps(TINY_CLIP))
    quick = {"quick_gelu": True} | TINY_CLIP
    (folder / "tiny-quickgelu.json").write_text(json.dumps(quick))
    open_clip.add_model_config(folder)
    yield "tiny-quickgelu"
    for name in ("tiny-plain", "tiny-quickgelu"):
        open_clip.factory._MODEL_CONFIGS.pop(name, None)


@pytest.fixture(scope="module")
def files(tiny_name: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same half-precision weights in every form in which they are published."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(1)
    model = open_clip.create_model(tiny_name)
    tensors = {name: value.half() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "a.safetensors")
    torch.save(tensors, folder / "plain.pt")
    wrapped = {f"module.{name}": value for name, value in tensors.items()}
    torch.save({"epoch": 3, "state_dict": wrapped}, folder / "checkpoint.pt")
    torch.jit.save(archive_of(tensors), folder / "archive.pt")
    return {path.name: path for path in folder.iterdir()}


class Holder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def archive_of(tensors: dict[str, Tensor]) -> Any:
    """As OpenAI's: a scripted module with these tensors, and three numbers beside them."""
    root = Holder()
    numbers = {"input_resolution": 64, "context_length": 20, "vocab_size": 49408}
    held = tensors | {name: torch.tensor(value) for name, value in numbers.items()}
    for name, value in held.items():
        *path, last = name.split(".")
        place: nn.Module = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, Holder())
            place = place.get_submodule(part)
        place.register_buffer(last, value)
    return torch.jit.script(root)


@torch.no_grad()
def test_an_archive_a_state_dict_and_safetensors_give_the_same_embeddings(tiny_name, files):
    digest = hashlib.sha256(files["archive.pt"].read_bytes()).hexdigest()
    images = torch.randn(2, 3, 64, 64)
    words = open_clip.SimpleTokenizer(context_length=20)(["a cat", "two dogs"])
    seen = []
    for name, file in files.items():
        expected = {"sha256": digest} if name == "archive.pt" else {}
        model, config = load_teacher(given(tiny_name, checkpoint=file, **expected))
        model.eval()
        assert config.model_cfg.quick_gelu
        assert next(model.parameters()).dtype == torch.float32
        seen.append((model.encode_image(images), model.encode_text(words)))
    assert len(seen) == 4
    for image, text in seen[1:]:
        assert torch.equal(image, seen[0][0])
        assert torch.equal(text, seen[0][1])


def test_an_archive_is_opened_for_its_digest_only_and_by_a_quickgelu_model_only(tiny_name, files):
    archive = files["archive.pt"]
    with pytest.raises(UserError, match="is a TorchScript archive, which holds code"):
        load_teacher(given(tiny_name, checkpoint=archive))
    with pytest.raises(UserError, match="use tiny-plain-quickgelu"):
        load_teacher(given("tiny-plain", checkpoint=archive))


def test_a_file_with_another_digest_than_expected_is_refused(tiny_name, files, tmp_path: Path):
    with pytest.raises(UserError, match="is not the expected file: its SHA-256 is"):
        load_teacher(given(tiny_name, checkpoint=files["plain.pt"], sha256="0" * 64))
    renamed = tmp_path / "RN50.pt"
    renamed.write_bytes(files["archive.pt"].read_bytes())
    assert published_digest("RN50-quickgelu", renamed)
    with pytest.raises(UserError, match="is not the expected file"):
        load_teacher(given("RN50-quickgelu", checkpoint=renamed))
    assert published_digest("RN50-quickgelu", tmp_path / "mine.pt") is None
    folder = tmp_path / "local"
    write_local_dir(folder, TINY_VIT)
    with pytest.raises(UserError, match="is not the expected file"):
        load_teacher(given("local-dir", checkpoint=folder, sha256="0" * 64))


def test_weights_of_another_model_are_refused_with_what_does_not_fit(tiny_name, files, tmp_path):
    with pytest.raises(UserError, match=r"does not fit ViT-B-32: .*Missing key"):
        load_teacher(given("ViT-B-32", checkpoint=files["plain.pt"]))
    (tmp_path / "text.pt").write_text("no weights at all")
    with pytest.raises(UserError, match="cannot be loaded as plain weights"):
        load_teacher(given(tiny_name, checkpoint=tmp_path / "text.pt"))
    for content in (
        [1, 2],
        {0: torch.zeros(1)},
        {"state_dict": [1]},
        {"state_dict": torch.ones(1)},
    ):
        torch.save(content, tmp_path / "odd.pt")
        with pytest.raises(UserError, match="holds something else than tensors by name"):
            load_teacher(given(tiny_name, checkpoint=tmp_path / "odd.pt"))
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="is no safetensors file"):
        load_teacher(given(tiny_name, checkpoint=tmp_path / "a.safetensors"))


class Evil:
    """Touches a file if it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path):
    mark = tmp_path / "ran"
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"a": Evil(mark)}, protocol=2))
    torch.save({"a": Evil(mark)}, tmp_path / "zip.pth")
    for name in ("raw.pth", "zip.pth"):
        with pytest.raises(UserError, match="cannot be loaded as plain weights"):
            read_foreign_weights(tmp_path / name, "student.checkpoint")
    assert not mark.exists()


def test_a_file_with_a_digest_in_its_name_is_checked_against_it(tmp_path: Path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pth")
    digest = hashlib.sha256((tmp_path / "x.pth").read_bytes()).hexdigest()
    right, wrong = tmp_path / f"resnet18-{digest[:8]}.pth", tmp_path / "resnet18-f37072fd.pth"
    for path in (right, wrong):
        path.write_bytes((tmp_path / "x.pth").read_bytes())
    assert read_foreign_weights(right, "k")["a"].item() == 0
    with pytest.raises(UserError, match="is not what its name says"):
        read_foreign_weights(wrong, "k")


def test_published_student_weights_are_read_as_plain_tensors_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whether they were fetched just now or lay in torch's cache."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    mark = tmp_path / "ran"
    cached = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    cached.parent.mkdir(parents=True)
    torch.save({"a": Evil(mark)}, cached)
    config = backbone_of("resnet18", "IMAGENET1K_V1")
    with pytest.raises(UserError, match="is not what its name says"):
        first_weights(config, None, "data/none", 0)
    assert not mark.exists()


def test_a_published_tag_is_a_file_that_may_be_checked(tiny_name, files, monkeypatch):
    """What a tag's file is loaded as, from wherever open_clip put it."""
    tag = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "quick_gelu": True}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny_name, {"mine": tag})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda _: str(files["a.safetensors"]))
    model, config = load_teacher(given(tiny_name, "mine"))
    assert config.preprocess_cfg == Preprocess(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    expected = load_file(files["a.safetensors"])["visual.conv1.weight"].float()
    assert torch.equal(model.visual.conv1.weight, expected)
    with pytest.raises(UserError, match="is not the expected file"):
        load_teacher(given(tiny_name, "mine", sha256="0" * 64))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet18", "convnext_tiny", "vit_b_32"])
def test_a_students_first_weights_are_those_of_torchvisions_file(tmp_path: Path, arch: str):
    import torchvision

    torch.manual_seed(3)
    published = getattr(torchvision.models, arch)(weights=None).eval()
    torch.save(published.state_dict(), tmp_path / "w.pth")
    config = backbone_of(arch, "checkpoint")
    tensors = first_weights(config, None, str(tmp_path / "w.pth"), 0)
    backbone, features = build_backbone(config)
    backbone.load_state_dict(tensors)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        maps = backbone.eval()(image)
        assert maps.shape == (1, features, 7, 7)
        expected = published(image)
        if arch == "resnet18":
            own = published.fc(maps.mean(dim=(2, 3)))
        elif arch == "convnext_tiny":
            pooled = published.features(image).mean(dim=(2, 3), keepdim=True)
            own = published.classifier(pooled)
            normed = published.classifier[0](published.features(image))
            assert torch.allclose(maps, normed, atol=1e-5)
        else:
            tokens = published.encoder(
                torch.cat([published.class_token, published.conv_proj(image).flatten(2).mT], dim=1)
            )
            assert torch.allclose(maps.flatten(2).mT, tokens[:, 1:], atol=1e-5)
            own = published.heads(tokens[:, 0])
    assert torch.allclose(own, expected, atol=1e-4)


def test_the_teachers_input_is_normalised_as_asked(project: Project):
    project.set(teacher__normalisation="imagenet")
    project.stage("weights")
    config = json.loads((project / "data/weights/teacher/open_clip_config.json").read_text())
    assert config["preprocess_cfg"]["mean"] == pytest.approx(IMAGENET_MEAN)
    student = json.loads((project / "data/weights/student_init.json").read_text())
    assert student["mean"] == [0.5] * 3  # the tower as a student keeps what it was trained with


def test_the_normalisation_of_a_file_is_that_of_the_models_published_weights(tmp_path: Path):
    assert usual_preprocessing("ViT-B-16-SigLIP").mean == (0.5, 0.5, 0.5)
    assert usual_preprocessing("RN50x64").std == pytest.approx((0.2686, 0.2613, 0.2758), 1e-3)


@torch.no_grad()
def test_a_tokenizer_from_elsewhere_is_kept_beside_the_weights(tmp_path: Path):
    """Words of SigLIP and others need files of their own: later stages find them without a net."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {name: n for n, name in enumerate(["[PAD]", "[UNK]", "a", "photo", "of", "cat"])}
    own = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]")
    config = json.loads(json.dumps(TINY_VIT))
    config["text_cfg"] |= {"hf_tokenizer_name": "someone/elses", "vocab_size": 6}
    write_local_dir(tmp_path / "given", config)
    fast.save_pretrained(tmp_path / "given")
    wanted = given("local-dir", checkpoint=tmp_path / "given")
    model, loaded = load_teacher(wanted)
    folder = tmp_path / "kept"
    save_weights(folder / "open_clip_model.safetensors", model.state_dict(), TeacherNote())
    loaded.write(folder)
    keep_tokenizer(wanted, loaded, folder)
    write_sums(folder)
    teacher = Teacher(folder, "cpu")
    one, two = teacher.embed_class(["a photo of a cat"]), teacher.embed_class(["a cat"])
    assert not torch.allclose(one, two)
    assert not teacher.too_long("a photo of a cat")
    assert teacher.too_long("a photo of a cat " * 5)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer for local-dir"):
        keep_tokenizer(given("local-dir", checkpoint=folder), loaded, tmp_path / "again")
    assert load_file(folder / "open_clip_model.safetensors")
