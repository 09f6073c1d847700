"""A head of one query a class: its shape, what it can learn, and a run."""

from __future__ import annotations

from contextlib import chdir

import numpy as np
import pytest
import torch

from experiments.ablations import UNTRAINED
from experiments.queries import Cells, Pooled, Queries, cells_of, trained
from experiments.results import judged
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


def test_a_query_reads_the_cell_that_it_looks_for_and_a_mean_cannot():
    """Of each class one cell is marked, and what else is in that cell says whether it is there."""
    torch.manual_seed(0)
    cells = 0.1 * torch.randn(1200, 16, 4)
    cells[:, :, 2:] += torch.sign(torch.randn(1200, 16, 2))
    there = torch.zeros(1200, 2)
    for c in range(2):
        place = torch.randint(0, 16, (1200,))
        cells[range(1200), place, c] = 4.0
        there[:, c] = (cells[range(1200), place, 2 + c] > 0).float()
    both = cells[:, None].expand(-1, 2, -1, -1)
    given, truth = Cells(both[:900], both[900:]), there[900:].numpy()
    assert judged(truth, trained(Queries, given, there[:900]))["mAP"] > 90
    assert judged(truth, trained(Pooled, given, there[:900]))["mAP"] < 75


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
