"""What a method is given to know of the labels is what its supervision allows."""

from __future__ import annotations

import numpy as np
import pytest

from experiments import observed as o


@pytest.fixture
def truth() -> np.ndarray:
    rng = np.random.default_rng(0)
    known = (rng.random((400, 6)) < 0.3).astype(np.float32)
    known[0] = 0
    known[:, 5][::7] = np.nan
    return known


def test_full_labels_are_the_truth_and_unjudged_pairs_unknown(truth):
    found = o.all_known(truth)
    assert ((found == 1) == (truth == 1)).all()
    assert ((found == -1) == (truth == 0)).all()
    assert ((found == 0) == np.isnan(truth)).all()


def test_partial_labels_are_a_share_of_the_truth(truth):
    found = o.some_known(truth, 0.1, np.random.default_rng(1))
    full = o.all_known(truth)
    assert (found[found != 0] == full[found != 0]).all()
    assert (found != 0).mean() == pytest.approx(0.1, abs=0.02)
    assert (found == -1).any()


def test_a_single_positive_is_one_of_the_images_own_and_each_as_likely(truth):
    counts = np.zeros(6)
    for seed in range(50):
        found = o.one_present(truth, np.random.default_rng(seed))
        assert (found.sum(axis=1) == (truth == 1).any(axis=1)).all()
        assert (truth[found == 1] == 1).all()
        assert not (found == -1).any()
        row = int(np.argmax((truth == 1).sum(axis=1)))
        counts += found[row]
    assert (counts > 0).sum() == (truth[row] == 1).sum()


def test_clips_likeliest_classes_are_taken_for_present():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]])
    assert o.likeliest(scores).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert o.likeliest(scores, 2).tolist() == [[0, 1, 1], [1, 0, 1]]
    assert o.likely(scores, 0.4).tolist() == [[0, 1, 0], [1, 0, 1]]
    assert o.with_unlikely(o.likeliest(scores), scores, 0.67).tolist() == [[-1, 1, -1], [1, -1, -1]]
