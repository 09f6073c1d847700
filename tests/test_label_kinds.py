"""Kinds of labels compared by the head that is fitted to each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments import discriminant
from experiments.ablations import UNTRAINED
from experiments.discriminant import out_of_fold
from experiments.label_kinds import Seen, judged, kinds, read
from stages.method.closed_form import FOLDS, calibrate, fit, logits_of
from stages.method.debias import debias
from stages.method.fusion import fuse, pool_views
from stages.method.similarity import class_probabilities, similarities
from stages.runtime.errors import UserError
from tests.conftest import Project

IMAGES, WINDOWS, CLASSES, DIM = 40, 4, 3, 6


def views(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, soft labels that follow from them, and the image of each view."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(IMAGES), WINDOWS)
    features = rng.normal(size=(len(group), DIM)).astype(np.float32)
    labels = 1 / (1 + np.exp(-features[:, :CLASSES] * 2 - rng.normal(size=(len(group), CLASSES))))
    return features, labels, group


def seen(seed: int = 0) -> Seen:
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(CLASSES, DIM))
    embeddings = rng.normal(size=(IMAGES, 1 + WINDOWS, DIM)).astype(np.float32)
    cosines = similarities(embeddings.reshape(-1, DIM), text).reshape(IMAGES, 1 + WINDOWS, -1)
    truth = {s: rng.integers(0, 2, (IMAGES, CLASSES)).astype(float) for s in ("train", "test")}
    features = {s: t @ rng.normal(size=(CLASSES, 9)).astype(np.float32) for s, t in truth.items()}
    features = {s: (f + rng.normal(size=f.shape)).astype(np.float32) for s, f in features.items()}
    return Seen(cosines, embeddings, 0.1, np.array([0.5, 0.7, 0.9]), features, truth)


def test_an_opinion_out_of_fold_is_that_of_a_head_fitted_to_the_other_images(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(discriminant, "SHRINKAGES", (0.1,))
    features, labels, group = views()
    centred = features - features.mean(axis=0)
    raw = np.empty(labels.shape)
    for fold in range(FOLDS):
        own = group % FOLDS == fold
        raw[own] = logits_of(fit(centred[~own], labels[~own], 0.1), centred[own])
    by = calibrate(raw, labels)
    literal = raw * by.weight[:, 0] + by.bias
    assert np.allclose(out_of_fold(features, labels, group), literal, atol=1e-3)


def test_an_opinion_out_of_fold_finds_what_the_labels_follow_from():
    features, labels, group = views()
    said = out_of_fold(features, labels, group)
    for c in range(CLASSES):
        assert np.corrcoef(said[:, c], features[:, c])[0, 1] > 0.9


def test_labels_raised_and_divided_are_the_pipelines():
    given = seen()
    flat = given.embeddings.reshape(-1, DIM)
    rng = np.random.default_rng(0)
    text = rng.normal(size=(CLASSES, DIM))
    p = class_probabilities(flat, text, 0.1).reshape(IMAGES, 1 + WINDOWS, CLASSES)
    initial = np.clip(debias(p[:, 0], given.bias, 1 / CLASSES), 0, 1)
    place = np.repeat(np.arange(IMAGES), WINDOWS)
    best, viewed = pool_views(p[:, 1:].reshape(-1, CLASSES), place, IMAGES)
    fused = fuse(initial, debias(best, given.bias, 1 / CLASSES), viewed, 0.4)
    assert np.allclose(
        dict(kinds(given, 0.4))["raised and divided: as published"], fused, atol=1e-6
    )


def test_every_kind_is_between_0_and_1_and_has_a_name_of_its_own():
    found = list(kinds(seen(), 0.4))
    assert len({name for name, _ in found}) == len(found)
    for name, labels in found:
        assert labels.shape == (IMAGES, CLASSES), name
        assert 0 <= labels.min() <= labels.max() <= 1, name


def test_labels_of_centred_and_of_standardised_cosines_are_ordered_as_the_formulas_say():
    given, found = seen(), dict(kinds(seen(), 0.4))
    centred = np.empty((IMAGES, 1 + WINDOWS, CLASSES))
    for image, view in np.ndindex(IMAGES, 1 + WINDOWS):
        row = given.views[image, view]
        centred[image, view] = [value - sum(row) / CLASSES for value in row]
    standardised = centred / given.views.std(axis=2, keepdims=True)
    for view, c in np.ndindex(1 + WINDOWS, CLASSES):
        column = standardised[:, view, c]
        standardised[:, view, c] = (column - column.mean()) / column.std()
    for name, z in (("centred over the classes", centred),
                    ("standardised by view and by class", standardised)):  # fmt: skip
        labels = found[f"cosines {name}"]
        for c in range(CLASSES):
            scores = [0.4 * z[i, 0, c] + 0.6 * max(z[i, 1:, c]) for i in range(IMAGES)]
            assert np.ptp(labels[:, c]) > 1e-3, name
            assert np.array_equal(np.argsort(labels[:, c]), np.argsort(scores)), name


def test_mixing_with_the_floor_keeps_the_order_and_raising_to_it_does_not():
    given = dict(kinds(seen(), 0.4))
    plain = given["softmax"].argsort(axis=0)
    assert np.array_equal(given["mixed with the floor: the order kept"].argsort(axis=0), plain)
    assert not np.array_equal(given["raised to the floor"].argsort(axis=0), plain)


def test_what_a_run_left_is_judged_kind_by_kind(project: Project):
    project.set(**{key.replace(".", "__"): value for key, value in UNTRAINED.items()})
    project.repro("student_features", "local_clip")
    given = read(Path(project.root))
    assert given.views.shape[:2] == (24, 14)
    lines = {name: judged(given, labels) for name, labels in kinds(given, 0.4)}
    assert lines["the truth"]["label_mAP"] == pytest.approx(100)
    assert all(0 <= line["mAP"] <= 100 for line in lines.values())


def test_labels_of_other_photographs_are_refused(project: Project):
    """As of another seed of the demo, whose run did not make them anew."""
    (project / "photos/test/00000.jpg").unlink()
    project.stage("index")
    with pytest.raises(UserError, match="made from another index"):
        read(project.root)
