"""How views come to the teacher: in batches of one shape, each once, without much of them held."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stages.images.crops import CropRule
from stages.models.embedding import ImageViews, batch_by_shape, embed_views

SHAPES = st.lists(st.sampled_from([(3, 2, 4), (3, 4, 2), (3, 4, 4)]), max_size=40)


@given(SHAPES, st.integers(1, 5), st.integers(1, 400))
def test_every_view_comes_once_in_a_batch_of_its_shape(shapes, size: int, most: int):
    views = [torch.full(shape, row, dtype=torch.uint8) for row, shape in enumerate(shapes)]
    seen = []
    for rows, batch in batch_by_shape(enumerate(views), size, most):
        assert 1 <= len(rows) == len(batch) <= size
        assert all(torch.equal(views[row], one) for row, one in zip(rows, batch, strict=True))
        seen += rows
    assert sorted(seen) == list(range(len(views)))


@given(SHAPES, st.integers(50, 400))
def test_no_more_waits_than_is_allowed(shapes, most: int):
    given_out = 0
    taken = 0

    def views():
        nonlocal given_out
        for row, shape in enumerate(shapes):
            assert given_out - taken <= most
            given_out += int(np.prod(shape))
            yield row, torch.zeros(shape, dtype=torch.uint8)

    for _, batch in batch_by_shape(views(), 1000, most):
        taken += batch.nbytes


class Counting:
    """In the teacher's place: embeds a view as its mean, and counts this process's open files."""

    stride, dim, device, batch = 32, 1, "cpu", 1000

    def __init__(self) -> None:
        self.files = 0

    def embed_images(self, views: torch.Tensor) -> torch.Tensor:
        self.files = max(self.files, len(os.listdir("/proc/self/fd")))
        return views.float().mean(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_views_that_wait_hold_no_file_and_come_in_their_rows(tmp_path, monkeypatch, workers: str):
    monkeypatch.setenv("CCD_WORKERS", workers)
    monkeypatch.setenv("CCD_DEVICE", "cpu")
    looks = []
    for number in range(120):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (32, 32 + number % 3 * 16), (number, number, number)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        looks.append(ImageViews(str(path), digest, [(0, 0, 32, 32)], whole=number % 2 == 0))
    teacher: Any = Counting()
    before = len(os.listdir("/proc/self/fd"))
    blocks = [range(100), range(100, 120)]
    found = embed_views(lambda b: looks[b.start : b.stop], blocks, teacher, CropRule(32))
    means = np.concatenate([arrays["embedding"] for arrays in found])
    assert means[:, 0].tolist() == list(range(120))
    assert teacher.files < before + 60
