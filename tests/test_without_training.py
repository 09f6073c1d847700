"""Patches of a frozen teacher, and the systems that train nothing: each formula written out."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from torch import Tensor

from experiments import patchwise, piaa, sparc, table1, tagclip
from experiments.patches import Patches, attending_to_alike, attention_to_alike, enlarged
from stages.models.teacher import Teacher
from stages.runtime.errors import UserError
from tests.conftest import Project
from tests.test_experiments import with_experiments

TRANSFORMER = {
    "embed_dim": 8,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


# patches


def teacher_of(tower: Any, stride: int, dim: int) -> Teacher:
    model = SimpleNamespace(visual=tower, requires_grad_=lambda _: None)
    parts = {"tower": tower.eval(), "model": model, "stride": stride, "precision": torch.float32}
    return cast(Teacher, SimpleNamespace(**parts, dim=dim, device="cpu"))


def test_a_resnets_patch_is_what_its_pool_would_say_of_it_alone(project: Project):
    teacher = Teacher(project / "data/weights/teacher", "cpu")
    patches, images = Patches(teacher), torch.randn(2, 3, 96, 64)
    found = patches(images)
    assert found.shape == (2, patches.width, 3, 2)
    pool = teacher.tower.attnpool
    cells = patches.features(images)
    for y in range(3):
        for x in range(2):
            value = pool.v_proj.weight @ cells[0, :, y, x] + pool.v_proj.bias
            said = pool.c_proj.weight @ value + pool.c_proj.bias
            assert torch.allclose(found[0, :, y, x], F.normalize(said, dim=0), atol=1e-5)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto"])
def test_a_convolutions_patch_is_what_the_tower_says_of_an_image_of_one(name: str):
    tower = TimmModel(name, 12, image_size=64, pool="", proj="linear")
    for module in tower.modules():
        if isinstance(module, torch.nn.LayerNorm):
            torch.nn.init.normal_(module.weight)
    patches, image = Patches(teacher_of(tower, 32, 12)), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        whole = F.normalize(tower(image), dim=1)
    assert torch.allclose(patches(image)[..., 0, 0], whole, atol=1e-4)
    assert patches(torch.randn(2, 3, 96, 64)).shape == (2, 12, 3, 2)
    with pytest.raises(UserError, match="not in the space"):
        Patches(teacher_of(tower, 32, 13))


def test_the_mean_of_a_convolutions_patches_is_what_the_tower_says():
    tower = TimmModel("tf_efficientnet_lite0", 12, image_size=64, pool="", proj="linear")
    patches, images = Patches(teacher_of(tower, 32, 12)), torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        cells = patches.embed(patches.features(images))
        assert torch.allclose(cells.mean(dim=(2, 3)), tower(images), atol=1e-5)


def test_a_teacher_that_sees_224_looks_at_448_and_one_that_sees_more_at_no_more():
    assert [enlarged(side) for side in (96, 224, 256, 640)] == [192, 448, 448, 640]


def test_patches_attend_to_those_like_them():
    attention = torch.nn.MultiheadAttention(12, 3, batch_first=True)
    x = torch.randn(2, 5, 12)
    weight, bias = attention.in_proj_weight, torch.randn(36)
    attention.in_proj_bias.data = bias
    found = attention_to_alike(attention, x)
    for i in range(2):
        q, k, v = (x[i] @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
        heads = []
        for some in torch.arange(12).chunk(3):
            maps = [(of[:, some] @ of[:, some].T / 2).softmax(dim=1) for of in (q, k)]
            heads.append((maps[0] + maps[1]) @ v[:, some])
        assert torch.allclose(found[i], attention.out_proj(torch.cat(heads, dim=1)), atol=1e-5)


def test_a_transformers_patches_differ_by_the_last_attention_alone(monkeypatch):
    model = open_clip.model.CLIP(**TRANSFORMER, output_dict=False)
    tower = model.visual.eval()
    images = torch.randn(2, 3, 64, 64)

    def as_it_was(attention: torch.nn.MultiheadAttention, x: Tensor) -> Tensor:
        return attention(x, x, x, need_weights=False)[0]

    patches = Patches(teacher_of(tower, 16, 8))
    alike = patches(images)
    assert alike.shape == (2, 8, 4, 4)
    assert patches(torch.randn(1, 3, 96, 64)).shape == (1, 8, 6, 4)
    monkeypatch.setattr("experiments.patches.attention_to_alike", as_it_was)
    tower.output_tokens = True
    with torch.no_grad():
        tokens = tower(images)[1]
        found = attending_to_alike(tower, images, tower.positional_embedding).flatten(2).mT
    assert torch.allclose(found, tokens, atol=1e-5)
    assert not torch.allclose(alike, patches(images), atol=1e-2)


def test_a_transformer_in_half_precision_has_patches_on_a_grid_of_another_size():
    tower = open_clip.model.CLIP(**TRANSFORMER, output_dict=False).visual.eval().bfloat16()
    table = tower.positional_embedding.detach().float()
    images = torch.randn(1, 3, 96, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        assert attending_to_alike(tower, images, table).shape == (1, 32, 6, 4)


# PIAA


def scene(patches: int = 600, classes: int = 4, dim: int = 8) -> tuple[Tensor, Tensor]:
    """Unit patches around unit texts, and the texts."""
    text = unit(classes, dim)
    label = torch.randint(0, classes, (patches,))
    return F.normalize(text[label] + 0.6 * torch.randn(patches, dim), dim=1), text


def test_a_bank_keeps_the_surest_patches_of_each_class():
    patches, text = scene()
    bank = piaa.empty_bank(text)
    for part in patches.split(100):
        bank = piaa.banked(bank, part, text, kept=20)
    entropies = []
    for x in patches:
        q = [math.exp(60 * float(x @ t)) for t in text]
        q = [value / sum(q) for value in q]
        entropies.append(-sum(value * math.log(value) for value in q if value > 0))
    likeliest = (patches @ text.T).argmax(dim=1)
    for c in range(4):
        own = sorted(entropies[i] for i in range(600) if likeliest[i] == c)[:20]
        assert bank.entropy[bank.label == c].tolist() == pytest.approx(own, abs=1e-5)


def test_the_discriminant_is_its_formula():
    patches, text = scene()
    bank = piaa.banked(piaa.empty_bank(text), patches, text, kept=50)
    found = piaa.fitted(bank.patches, bank.label, bank.p, text)
    x, n = bank.patches.double().numpy(), len(bank.patches)
    means = []
    for c in range(4):
        own = [i for i in range(n) if bank.label[i] == c]
        q = [float(bank.p[i, c]) for i in own]
        means.append(sum(w * x[i] for w, i in zip(q, own, strict=True)) / sum(q))
    apart = np.array([x[i] - means[int(bank.label[i])] for i in range(n)])
    covariance = np.cov(apart.T)
    p = 8 * np.linalg.pinv((n - 1) * covariance + np.trace(covariance) * np.eye(8))
    for c in range(4):
        weight = p @ means[c]
        bias = -math.log(4) - 0.5 * means[c] @ p @ means[c]
        assert found.weight[c].numpy() == pytest.approx(weight, rel=1e-3, abs=1e-4)
        assert float(found.bias[c]) == pytest.approx(bias, rel=1e-3)


def literally_kept(own: list[float], label: list[int], least: Any) -> list[int]:
    """Which patches reach what is the least of their class."""
    of_class = {c: [p for p, k in zip(own, label, strict=True) if k == c] for c in set(label)}
    return [i for i, (p, c) in enumerate(zip(own, label, strict=True)) if p >= least(of_class[c])]


def test_the_published_classifier_is_fitted_again_to_what_stands_out(monkeypatch):
    monkeypatch.setattr(piaa, "REFINED", 0.05)  # as for COCO: it is inert for VOC
    patches, text = scene()
    bank = piaa.banked(piaa.empty_bank(text), patches, text, kept=80)
    first = piaa.fitted(bank.patches, bank.label, bank.p, text)
    r = (0.05 * first(bank.patches)).softmax(dim=1)
    own, label = (of.tolist() for of in r.max(dim=1))
    kept = literally_kept(own, label, lambda all_of: np.mean(all_of) + np.std(all_of, ddof=1))
    assert 4 < len(kept) < len(bank.patches) / 2
    again = piaa.fitted(bank.patches[kept], torch.tensor(label)[kept], r[kept], text)
    assert torch.allclose(piaa.published(bank, text).weight, again.weight, rtol=1e-3)
    few = piaa.Bank(*(of[:1] for of in bank))
    assert torch.isfinite(piaa.published(few, text).weight).all()


def test_the_restated_classifier_is_fitted_again_to_the_surest_half():
    patches, text = scene()
    bank = piaa.banked(piaa.empty_bank(text), patches, text, kept=80)
    first = piaa.fitted(bank.patches, bank.label, bank.p, piaa.borrowed(bank, text))
    logits = first(bank.patches)
    own, label = (of.tolist() for of in (logits - logits.mean(dim=1, keepdim=True)).max(dim=1))
    kept = literally_kept(own, label, np.median)
    ones, of_text = torch.ones(len(kept), 4), piaa.borrowed(bank, text)
    again = piaa.fitted(bank.patches[kept], torch.tensor(label)[kept], ones, of_text)
    said = again(bank.patches)
    scale = (said - said.mean(dim=1, keepdim=True)).std()
    assert torch.allclose(piaa.restated(bank, text).weight, again.weight / scale, rtol=1e-3)


def test_published_scores_are_three_softmaxes():
    logits, whole = 20 * torch.randn(2, 5, 3), torch.rand(2, 3)

    def softmax(values: list[float]) -> list[float]:
        total = sum(math.exp(v) for v in values)
        return [math.exp(v) / total for v in values]

    found = piaa.published_scores(logits, whole)
    for i in range(2):
        of_patches = [softmax([float(v) / 500 for v in patch]) for patch in logits[i]]
        a = softmax([200 * max(p[c] for p in of_patches) for c in range(3)])
        e = softmax([80 * float(v) for v in whole[i]])
        for c in range(3):
            assert float(found[i, c]) == pytest.approx(0.1 * e[c] + 0.9 * a[c], rel=1e-4)


def test_a_class_without_patches_borrows_the_way_from_text_to_patches():
    text = unit(3, 6)
    patches = text[torch.tensor([0, 0, 1])] + 0.5
    bank = piaa.Bank(patches, patches @ text.T, torch.tensor([0, 0, 1]), torch.zeros(3))
    assert torch.allclose(piaa.borrowed(bank, text), text + 0.5, atol=1e-6)


def test_restated_scores_do_not_depend_on_how_many_patches_are_kept():
    patches, text = scene(20_000, 5, 16)
    said = []
    for kept in (512, 32):
        bank = piaa.banked(piaa.empty_bank(text), patches, text, kept)
        of_classes = piaa.restated(bank, text)
        said.append(piaa.of_classes_apart(of_classes(patches[:500])))
    assert said[0].std() / said[1].std() == pytest.approx(1, abs=0.3)
    published = [
        piaa.published(piaa.banked(piaa.empty_bank(text), patches, text, kept), text)(patches[:500])
        for kept in (512, 32)
    ]
    ratio = published[0].std() / published[1].std()
    assert not 0.5 < float(ratio) < 2  # the trap
    assert spearmanr(said[0][:, 0], said[1][:, 0]).statistic > 0.9


def test_the_largest_centred_logit_of_the_patches_counts():
    logits, whole = torch.randn(2, 5, 3), torch.rand(2, 3)
    found = piaa.restated_scores(logits, whole)
    for i in range(2):
        best = [max(float(p[c] - p.mean()) for p in logits[i]) for c in range(3)]
        total = sum(math.exp(b) for b in best)
        for c in range(3):
            expected = 0.1 * float(whole[i, c]) + 0.9 * math.exp(best[c]) / total
            assert float(found[i, c]) == pytest.approx(expected, rel=1e-4)


# SPARC


def test_pairs_are_of_classes_that_images_are_said_to_show_together():
    simple = np.array([[0.9, 0.8, 0.1, 0.0], [0.9, 0.7, 0.2, 0.1], [0.1, 0.9, 0.8, 0.0]])
    assert sparc.pairs_seen(simple, top=2) == [(0, 1), (1, 2)]
    assert sparc.pairs_seen(simple, top=2, partners=1) == [(0, 1), (1, 2)]
    assert sparc.pairs_seen(simple[:2], top=2) == [(0, 1)]


def test_compound_scores_are_ranked_and_weighed_by_what_varies_most():
    rng = np.random.default_rng(0)
    simple, compound = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    pairs = [(0, 1), (0, 2)]
    simple[:, 0] += 2 * compound.mean(axis=1)
    found = sparc.fit(simple, compound, pairs)(simple, compound)
    own, beside = np.empty((60, 3)), np.empty((60, 2))
    for i in range(60):
        mean, deviation = simple[i].mean(), simple[i].std()
        own[i] = [(s - mean) / deviation for s in simple[i]]
        beside[i] = [(s - mean) / deviation for s in compound[i]]
    own = (own - own.mean(axis=0)) / own.std(axis=0)
    beside = (beside - beside.mean(axis=0)) / beside.std(axis=0)
    for c, partners in enumerate([[0, 1], [0], [1]]):
        rows = np.array([[*sorted(beside[i, partners]), own[i, c]] for i in range(60)])
        direction = PCA(1).fit(rows).components_[0]
        direction *= np.sign(direction.mean()) / np.abs(direction).sum()
        assert found[:, c] == pytest.approx((rows @ direction + own[:, c]) / 2, abs=1e-6)


def test_without_pairs_scores_are_the_standardised_ones():
    rng = np.random.default_rng(0)
    simple = rng.normal(size=(40, 3))
    found = sparc.fit(simple, np.empty((40, 0)), [])(simple, np.empty((40, 0)))
    scaled = sparc.by_image(simple, simple)
    assert found == pytest.approx((scaled - scaled.mean(axis=0)) / scaled.std(axis=0))


def test_one_class_alone_is_scored_too():
    simple, none = np.random.default_rng(0).normal(size=(9, 1)), np.empty((9, 0))
    assert np.isfinite(sparc.fit(simple, none, [])(simple, none)).all()


# TagCLIP


def test_a_word_that_names_a_class_is_no_background():
    texts, words = unit(3, 32), ["sky", "car", "birds", "trees", "sea"]
    of_words = unit(5, 32)
    of_words[4] = texts[2]  # another word for the same
    kept = tagclip.background_of(["bird", "Cars, lorries", "ocean"], texts, words, of_words)
    assert torch.equal(kept, of_words[[0, 3]])


def test_classes_share_the_softmax_with_what_is_no_class():
    seen, texts, background = unit(2, 6), unit(3, 6), unit(4, 6)
    found = tagclip.probabilities(seen, texts, background, 0.1)
    every = [[math.exp(float(x @ t) / 0.1) for t in [*texts, *background]] for x in seen]
    expected = [[of[c] / sum(of) for c in range(3)] for of in every]
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-4)


def test_a_class_is_looked_at_again_where_its_map_is_above_its_middle():
    p = torch.zeros(4, 5, 3)
    p[1, 2, 0], p[2, 3, 0], p[3, 4, 0] = 0.9, 0.6, 0.4
    p[..., 1] = 0.05
    p[0, 0, 2] = 0.5
    looks = tagclip.second_looks(p)
    assert [c for c, _ in looks] == [0, 2]  # the second's best, .05, is below the middle, .475
    assert looks[0][1] == pytest.approx((2 / 5, 1 / 4, 4 / 5, 3 / 4))
    assert looks[1][1] == pytest.approx((0, 0, 1 / 5, 1 / 4))


def test_a_second_look_counts_as_much_as_the_first():
    first, said = np.array([[0.2, 0.4], [0.6, 0.8]]), np.array([[0.0, 1.0], [0.4, 0.0]])
    looks = patchwise.Looks([0, 1], [1, 0], [(0, 0, 1, 1)] * 2)
    found = patchwise.with_looks(first, said, looks)
    assert found == pytest.approx(np.array([[0.2, 0.7], [0.5, 0.8]]))


# on real files


def test_what_patches_say_is_judged(project: Project):
    with_experiments(project)
    project.run("python", "-m", "experiments.patchwise")
    found = json.loads((project / "results/table1/patchwise.json").read_text())
    assert set(found) == set(table1.PATCHWISE)
    assert found["tagclip"] != found["patches"]
    assert all(0 < of["mAP"] <= 100 for of in found.values())
