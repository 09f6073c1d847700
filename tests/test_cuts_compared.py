"""Cuts compared: each kind by its definition, and what a run's own come to."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from experiments.cuts import (
    OWN,
    best_cuts,
    binned,
    expected_f1_cut,
    judged,
    kinds,
    otsu,
    quantiles,
    read,
)
from stages.method.cuts import calibration_error
from tests.conftest import Project

TWO = arrays.arrays(np.uint8, 60, elements=st.integers(0, 255)).filter(lambda x: len(set(x)) > 1)


@given(TWO)
def test_otsus_cut_is_as_good_as_that_of_opencv(values: np.ndarray):
    """Of cuts between the same values either may be taken: the variance between decides."""

    def between(cut: float) -> float:
        low, high = values[values <= cut].astype(float), values[values > cut].astype(float)
        if not len(low) or not len(high):
            return 0.0
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    theirs, _ = cv2.threshold(values, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    assert between(otsu(values.astype(float))) == pytest.approx(between(theirs))


@given(
    arrays.arrays(np.float64, (12, 2), elements=st.integers(0, 20).map(lambda n: n / 20)),
    arrays.arrays(np.float64, (12, 2), elements=st.sampled_from([0.0, 1.0, np.nan])),
)
def test_no_cut_has_a_better_f1_than_the_best(p: np.ndarray, truth: np.ndarray):
    cuts = best_cuts(p, truth)
    for c in range(2):
        known = ~np.isnan(truth[:, c])

        def f1(cut: float, c: int = c, known: np.ndarray = known) -> float:
            calls, there = p[known, c] >= cut, truth[known, c] > 0
            return 2 * (calls & there).sum() / max(calls.sum() + there.sum(), 1)

        if (truth[known, c] > 0).any():
            assert f1(cuts[c]) == pytest.approx(max(f1(n / 20) for n in range(21)))
        else:
            assert cuts[c] == 1


@given(arrays.arrays(np.float64, 15, elements=st.floats(0.01, 0.99)))
def test_no_cut_has_a_greater_expected_f1(p: np.ndarray):
    def expected(cut: float) -> float:
        called = p[p >= cut]
        return 2 * called.sum() / (len(called) + p.sum())

    assert expected(expected_f1_cut(p)) >= max(expected(cut) for cut in p) - 1e-9


def test_a_quantile_is_reached_by_that_share():
    p = np.arange(100.0).reshape(100, 1)
    assert (p >= quantiles(p, np.array([0.13]))).sum() == 13


def test_what_a_run_came_to_is_what_evaluate_says(finished: Project):
    said = read(finished.root)
    metrics = json.loads((finished / "results/metrics.json").read_text())
    calls = dict(kinds(said))
    own = judged(said, calls[OWN])
    assert own["F1"] == pytest.approx(metrics["F1"], abs=0.01)
    half = judged(said, calls["1/2 of what the student says"])
    assert half["F1"] == pytest.approx(metrics["F1_at_half"], abs=0.01)
    best = judged(said, calls["best F1 on the labels of test images"])["F1"]
    assert best >= max(judged(said, one)["F1"] for one in calls.values()) - 1e-9
    for p, key in ((said.sure, "calibration_error"), (said.p, "calibration_error_as_trained")):
        bins = binned(said.truth["test"], p["test"])
        error = ((bins["said"] - bins["true"]).abs() * bins["pairs"]).sum() / bins["pairs"].sum()
        assert 100 * error == pytest.approx(metrics[key], abs=0.01)
        assert error == pytest.approx(calibration_error(said.truth["test"], p["test"]), abs=1e-6)
