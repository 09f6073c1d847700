"""Cuts without labels: calibrated by pseudo-labels, called as often as is expected."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from stages.method.cuts import (
    calibrated,
    calibration_error,
    cuts_of,
    expected_share,
    f1_of_each,
    logits_of,
    precise,
)
from tests.conftest import MINI_CLASSES, Project

PROBABILITIES = arrays(np.float64, st.integers(2, 30), elements=st.floats(0.001, 0.999))


def drawn(images: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are too low and too flat, and labels of one half or more where a class is."""
    rng = np.random.default_rng(0)
    truth = rng.random((images, 3)) < [0.1, 0.3, 0.5]
    logits = rng.normal(2.0 * truth - 3.5, 1.0)
    return 1 / (1 + np.exp(-logits)), np.where(truth, 0.7, 0.2)


@given(PROBABILITIES)
def test_as_many_are_called_as_are_expected(p: np.ndarray):
    p = np.round(p, 3)
    called = (p >= expected_share(p)).sum()
    possible = {int((p >= least).sum()) for least in p} - {len(p)}  # equal ones together, not all
    nearest = min((abs(count - p.sum()) for count in possible), default=None)
    assert nearest is None or abs(called - p.sum()) == pytest.approx(nearest)


@given(PROBABILITIES, st.integers(2, 3))
def test_images_of_one_probability_are_called_together_whatever_the_last_bits(p, times: int):
    p = np.repeat(p, times) * (1 + 1e-7 * np.arange(len(p) * times) % 3)
    for cut in (expected_share(p), precise(p, 0.7)):
        called = p.astype(np.float32) >= np.float32(cut)
        for value, is_called in zip(p, called, strict=True):
            assert set(called[np.isclose(p, value, rtol=1e-6, atol=0)]) == {is_called}


@given(PROBABILITIES, st.floats(0.05, 0.95))
def test_calls_have_the_precision_that_is_wanted_and_no_lower_cut_has(p: np.ndarray, wanted: float):
    cut = precise(p, wanted)
    called = p[p >= cut]
    assert not len(called) or called.mean() >= wanted - 1e-9
    for lower in p[p < cut]:
        if not np.isclose(lower, cut):  # a tie is called as a whole, or not
            assert p[p >= lower].mean() < wanted + 1e-9 or lower in called


def test_the_calibration_is_scikit_learns_logistic_regression():
    p, labels = drawn()
    cuts = cuts_of(p, labels)
    for c in range(3):
        oracle = LogisticRegression(C=1e6).fit(logits_of(p)[:, [c]], labels[:, c] >= 0.5)
        assert cuts.scale[c] == pytest.approx(oracle.coef_[0, 0], abs=1e-2)
        assert cuts.offset[c] == pytest.approx(oracle.intercept_[0], abs=1e-2)


def test_calibrated_probabilities_are_shares_and_their_cuts_better_than_a_half():
    p, labels = drawn()
    truth = (labels >= 0.5).astype(float)
    cuts = cuts_of(p[:2000], labels[:2000])
    after = calibrated(p[2000:], cuts.scale, cuts.offset)
    assert calibration_error(truth[2000:], p[2000:]) > 0.1
    assert calibration_error(truth[2000:], after) < 0.02
    at_cuts = f1_of_each(truth[2000:], after >= cuts.threshold)
    assert (at_cuts > f1_of_each(truth[2000:], p[2000:] >= 0.5) + 0.1).all()
    assert cuts.told_apart.all()


def test_a_class_that_is_nowhere_or_everywhere_or_not_understood_is_marked():
    p, labels = drawn()
    labels[:, 0], labels[:, 1] = 0.1, 0.9
    p[:, 2] = 1 - p[:, 2]  # the higher, the less likely
    cuts = cuts_of(p, labels)
    assert not cuts.told_apart.any()
    assert np.array_equal(cuts.threshold, [0.5] * 3)
    assert np.allclose(calibrated(p, cuts.scale, cuts.offset), p)


@given(
    arrays(np.float64, (12, 3), elements=st.sampled_from([0.0, 1.0, np.nan])),
    arrays(np.bool_, (12, 3)),
)
def test_f1_is_scikit_learns(truth: np.ndarray, called: np.ndarray):
    for c, found in enumerate(f1_of_each(truth, called)):
        judged = ~np.isnan(truth[:, c])
        if truth[judged, c].sum():
            assert found == pytest.approx(f1_score(truth[judged, c], called[judged, c]))
        else:
            assert np.isnan(found)


def test_the_calibration_error_of_a_literal_count():
    truth = np.array([[1.0, 0.0], [1.0, np.nan], [0.0, 1.0]])
    p = np.array([[0.95, 0.91], [0.15, 0.5], [0.12, 1.0]])
    above, below = abs(0.95 + 0.91 + 1.0 - 2), abs(0.15 + 0.12 - 1)
    assert calibration_error(truth, p) == pytest.approx((above + below) / 5)


def test_the_stages_cuts_are_those_of_the_evaluations_scores(finished: Project):
    """Of the training images alone; the stage looks at them itself."""
    cuts = pd.read_parquet(finished / "data/thresholds.parquet")
    said = pd.read_parquet(finished / "data/predictions.parquet").set_index("image_id")
    labels = pd.read_parquet(finished / "data/pseudo_labels.parquet").set_index("image_id")
    expected = cuts_of(said.loc[labels.index].to_numpy(), labels.to_numpy())
    assert tuple(cuts["class"]) == MINI_CLASSES
    for name in ("scale", "offset", "threshold"):
        assert cuts[name].to_numpy() == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-4)
    metrics = json.loads((finished / "results/metrics.json").read_text())
    per_class = pd.read_csv(finished / "results/per_class.csv")
    assert metrics["F1"] == pytest.approx(per_class["student_F1"].mean(), abs=0.01)
    assert per_class["threshold"].to_numpy() == pytest.approx(cuts["threshold"], abs=1e-4)


def test_cuts_of_another_classifier_are_not_judged(project: Project):
    project.set(train__epochs=1)
    project.stage("train")
    done = project.stage("evaluate", check=False)
    assert done.returncode == 1
    assert "data/thresholds.parquet is of another classifier: run `dvc repro`" in done.stderr


def test_predict_calls_classes_at_their_cuts(project: Project):
    cuts = pd.read_parquet(project / "data/thresholds.parquet").set_index("class")

    def table(*words: str) -> pd.DataFrame:
        project.run("ccd", "predict", "photos/test", "-o", "said.parquet", *words)
        return pd.read_parquet(project / "said.parquet")

    raw, said = table("--no-calibrate", "--threshold", "0.5"), table()
    given, shown = (one[list(cuts.index)].to_numpy() for one in (raw, said))
    expected = calibrated(given, cuts["scale"].to_numpy(), cuts["offset"].to_numpy())
    np.testing.assert_allclose(shown, expected, atol=1e-4)
    for called, row in zip(said["labels"], shown >= cuts["threshold"].to_numpy(), strict=True):
        assert set(called) == set(cuts.index[row])
    shutil.copytree(project / "data/classifier", project / "elsewhere")
    (project / "elsewhere/student.safetensors").write_bytes(
        (project / "data/warmup/student.safetensors").read_bytes()
    )
    shutil.copy(project / "data/warmup/student.json", project / "elsewhere/student.json")
    other = ("photos/test/00000.jpg", "--student", "elsewhere/student.safetensors")
    warned = project.run("ccd", "predict", *other).stderr
    assert "data/thresholds.parquet is of another classifier and not used" in warned
    assert "cut at 1/2, not calibrated" in warned
