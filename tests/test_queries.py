"""A head of one query a class: its shape, what it can learn, and a run."""

from __future__ import annotations

from contextlib import chdir

import numpy as np
import pytest
import torch

from experiments.ablations import UNTRAINED
from experiments.queries import Cells, Pooled, Queries, cells_of, judged, trained
from stages.artifacts import STUDENT_FEATURES
from stages.storage.arrays import read_store
from stages.storage.index import is_usable, read_index
from tests.conftest import Project


@pytest.mark.parametrize("kind", [Queries, Pooled])
def test_a_head_gives_a_logit_a_class_whatever_the_number_of_cells(kind):
    torch.manual_seed(0)
    head = kind(10, 7).eval()
    assert head(torch.randn(3, 36, 10)).shape == (3, 7)
    assert head(torch.randn(2, 9, 10)).shape == (2, 7)


def test_the_order_of_the_cells_says_nothing():
    torch.manual_seed(0)
    head, cells = Queries(10, 7).eval(), torch.randn(3, 36, 10)
    assert torch.allclose(head(cells), head(cells[:, torch.randperm(36)]), atol=1e-5)


def test_a_query_finds_the_one_cell_that_matters_and_a_mean_does_not():
    """A class is there where some cell is large along its axis; most cells are large along all."""
    torch.manual_seed(0)
    cells = torch.randn(400, 16, 12)
    there = torch.rand(400, 3) < 0.5
    for c in range(3):
        place = torch.randint(0, 16, (400,))
        cells[there[:, c], place[there[:, c]], c] = 6.0
        cells[:, :, c] -= cells[:, :, c].mean(dim=1, keepdim=True)  # the mean says nothing
    both = cells[:, None].expand(-1, 2, -1, -1)
    given = Cells(both[:300], both[300:])
    labels, truth = there[:300].float(), there[300:].numpy().astype(float)
    looked = judged(truth, trained(Queries, given, labels))["mAP"]
    averaged = judged(truth, trained(Pooled, given, labels))["mAP"]
    assert looked > 90
    assert averaged < 75


def test_the_mean_of_the_cells_is_what_the_pipeline_pools(project: Project):
    project.set(**{key.replace(".", "__"): value for key, value in UNTRAINED.items()})
    project.repro("student_features")
    with chdir(project.root):
        index, digest = read_index()
        pooled = read_store(STUDENT_FEATURES, digest)[0]["pooled"][...]
        cells = cells_of(64)
        for split, own in zip(("train", "test"), cells, strict=True):
            expected = pooled[is_usable(index, split)]
            assert np.allclose(own.mean(dim=2).numpy(), expected, atol=1e-4)
