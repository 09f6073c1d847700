"""What the training loop sees: each image its own randomness, each view its own statistics."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from stages.images.crops import DETAIL, squash
from stages.models.student import Student, StudentConfig, logits_of
from stages.training.batches import Augmentation, Batch, shuffled_batches, training_views
from stages.training.distributed import join
from stages.training.network import forward_views, set_training_mode


def test_an_images_views_follow_from_the_seed_and_its_row_alone():
    decoded = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)
    files = pd.DataFrame({"path": [""] * 6, "sha256": [""] * 6})

    def views(rows: list[int], seed: int):
        return training_views(files, Augmentation(32, (0.5,) * 4), decoded, Batch(rows, seed))

    together = views([3, 1, 5], 7)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    for place, row in enumerate([3, 1, 5]):
        alone = views([row], 7)
        assert torch.equal(alone[0][0], together[0][place])
        assert torch.equal(alone[1][0], together[1][place])
    assert torch.equal(torch.get_rng_state(), before)
    other = views([3, 1, 5], 8)
    assert not torch.equal(other[1], together[1])


def test_every_image_comes_once_an_epoch_in_an_order_that_follows_from_the_seed():
    batches = shuffled_batches(10, 4, 3)
    assert [len(batch.rows) for batch in batches] == [4, 4, 2]
    assert sorted(row for batch in batches for row in batch.rows) == list(range(10))
    assert batches == shuffled_batches(10, 4, 3)
    assert batches != shuffled_batches(10, 4, 4)


def test_few_images_are_passed_over_as_often_as_makes_the_steps_of_an_epoch():
    batches = shuffled_batches(10, 4, 3, steps=7)
    assert [len(batch.rows) for batch in batches] == [4, 4, 2] * 3
    assert batches[:3] == [batch._replace(last=False) for batch in shuffled_batches(10, 4, 3)]
    assert [batch.last for batch in batches] == [False] * 6 + [True] * 3
    assert len({batch.seed for batch in batches}) == len({tuple(b.rows) for b in batches}) / 3
    assert sorted(row for batch in batches[6:] for row in batch.rows) == list(range(10))
    assert shuffled_batches(10, 4, 3, steps=3) == shuffled_batches(10, 4, 3)


def student_with(norm: nn.Module, batch_norm: str) -> Student:
    torch.manual_seed(0)
    config = StudentConfig(
        arch="none", output_stride=1, weights="random", mean=(0.0,) * 3, std=(1.0,) * 3,
        batch_norm=batch_norm, boost=1.0, head="library", precision="float32", size=8,
        classes=("a", "b"),
    )  # fmt: skip
    return Student(nn.Sequential(nn.Conv2d(3, 4, 3), norm), 4, config)


def test_a_view_has_the_statistics_of_its_own_pass():
    """With batch norm by the batch, both views in one pass would share them."""
    student = student_with(nn.BatchNorm2d(4), "batch")
    weak = torch.randint(0, 128, (4, 3, 8, 8), dtype=torch.uint8)
    strong = torch.randint(128, 256, (4, 3, 8, 8), dtype=torch.uint8)
    set_training_mode(student, "batch")
    network = join("cpu", "float32").setup(student)
    apart = forward_views(network, weak, strong, apart=True)
    alone = logits_of(student.class_activation_maps(strong / 255))
    assert torch.allclose(apart[1], alone, atol=1e-6)
    shared = forward_views(network, weak, strong, apart=False)
    assert not torch.allclose(shared[1], alone, atol=1e-2)


def test_frozen_batch_norm_keeps_its_statistics_and_one_pass_is_as_two():
    norm = nn.BatchNorm2d(4)
    student = student_with(norm, "frozen")
    weak, strong = torch.randint(0, 256, (2, 4, 3, 8, 8), dtype=torch.uint8)
    set_training_mode(student, "frozen")
    together = forward_views(student, weak, strong, apart=False)
    apart = forward_views(student, weak, strong, apart=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(together, apart, strict=True))
    assert norm.num_batches_tracked == 0
    assert (norm.running_mean == 0).all()


def test_a_large_jpeg_is_decoded_smaller_and_looks_the_same(tmp_path):
    from stages.images.crops import read_squashed
    from stages.images.decode import read_image

    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    path = tmp_path / "large.jpg"
    smooth.resize((1600, 1200), Image.Resampling.BICUBIC).save(path, quality=95)
    import hashlib

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    full = read_image(str(path), digest)
    drafted = read_image(str(path), digest, enough=DETAIL * 96)
    assert full.size == (1600, 1200)
    assert drafted.size == (400, 300)
    difference = read_squashed(str(path), digest, 96).int() - squash(full, 96).int()
    assert float(difference.abs().float().mean()) < 1.5
    assert read_image(str(path), digest, enough=1000).size == (1600, 1200)
