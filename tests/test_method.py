"""The method's functions equal slow, literal versions of the formulas, and hold at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import average_precision_score

from stages.method.average_precision import (
    mean_average_precision,
    per_class_average_precision,
)
from stages.method.cam import region_box, scale_to_unit
from stages.method.debias import (
    class_bias,
    debias,
    entropy,
    entropy_limit_in_nats,
    label_floor,
)
from stages.method.evaluation import micro_average_precision
from stages.method.fusion import fuse, pool_views
from stages.method.labelling import labels_of
from stages.method.objective import consistency_loss, label_loss
from stages.method.similarity import class_probabilities, class_probabilities_in_half
from stages.method.stopping import first_local_minimum
from stages.method.views import (
    best_candidates,
    box_in_pixels,
    expand_box,
)
from stages.runtime.params_file import PARAMS_FILE, parse_params, read_yaml

unit = st.floats(0, 1, width=32)
settings.register_profile("quick", max_examples=60, deadline=None)
settings.load_profile("quick")


@st.composite
def probabilities(draw, least_images: int = 1):
    """(images, classes) float32 rows that sum to 1."""
    images, classes = draw(st.integers(least_images, 12)), draw(st.integers(1, 6))
    raw = draw(arrays(np.float64, (images, classes), elements=st.floats(1e-6, 1)))
    return (raw**4 / (raw**4).sum(axis=1, keepdims=True)).astype(np.float32)


@given(
    st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.floats(0.01, 2), st.integers(0, 99)
)
def test_probabilities_are_the_softmax_of_cosines_over_the_temperature(n, c, d, tau, seed):
    rng = np.random.default_rng(seed)
    images, classes = rng.normal(size=(n, d)) + 0.1, rng.normal(size=(c, d)) + 0.1
    p = class_probabilities(images, classes, tau)
    for i in range(n):  # Eq. 1, then Eq. 2
        s = [
            sum(f * w for f, w in zip(images[i], classes[k], strict=True))
            / (math.sqrt(sum(f * f for f in images[i])) * math.sqrt(sum(w * w for w in classes[k])))
            for k in range(c)
        ]
        total = sum(math.exp(x / tau) for x in s)
        assert p[i] == pytest.approx([math.exp(x / tau) / total for x in s], abs=1e-6)


def test_a_small_temperature_does_not_overflow():
    p = class_probabilities(np.array([[1.0, 0.0]]), np.eye(2), 1e-4)
    assert p.tolist() == [[1.0, 0.0]]


@given(probabilities())
def test_entropy_is_minus_the_sum_of_p_log_p(p):
    literal = [-sum(float(x) * math.log(x) for x in row if x > 0) for row in p]
    assert entropy(p) == pytest.approx(literal, abs=1e-5)


@given(probabilities(), st.floats(0.05, 2), st.integers(1, 3))
def test_the_bias_is_the_mean_top_probability_of_each_class_over_sure_images(p, limit, least):
    tops: dict[int, list[float]] = {c: [] for c in range(p.shape[1])}
    for row, h in zip(p, entropy(p), strict=True):
        if h <= limit:
            tops[int(np.argmax(row))].append(float(max(row)))
    known = {c: values for c, values in tops.items() if len(values) >= least}
    everything = [value for values in known.values() for value in values]
    fallback = sum(everything) / len(everything) if everything else 1.0
    measured = class_bias([p[:3], p[3:]], limit, least)
    for c, values in tops.items():
        expected = sum(values) / len(values) if c in known else fallback
        assert measured.bias[c] == pytest.approx(expected, rel=1e-5)
        assert measured.images[c] == len(values)
    assert np.isfinite(measured.bias).all()
    assert (measured.bias > 0).all()


def test_a_class_never_on_top_takes_the_mean_bias_of_the_others():
    p = np.array([[0.8, 0.2, 0.0], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0]], np.float32)
    assert class_bias([p], 2.0, 1).bias == pytest.approx([0.7, 0.9, (0.8 + 0.6 + 0.9) / 3])


def test_with_no_sure_image_nothing_is_divided():
    p = np.full((4, 3), 1 / 3, np.float32)
    assert class_bias([p], 0.1, 1).bias.tolist() == [1, 1, 1]


def test_one_class_and_one_image_have_a_bias_and_labels():
    p = class_probabilities(np.ones((1, 4)), np.ones((1, 4)), 0.01)
    limit = entropy_limit_in_nats(0.6, "normalised", 1)
    measured = class_bias([p], limit, 1)
    assert measured.bias.tolist() == [1]
    assert debias(p, measured.bias, label_floor("one_over_classes", 1)).tolist() == [[1]]


@given(probabilities(), st.floats(0, 0.5), st.integers(0, 9))
def test_debiasing_raises_to_the_floor_before_it_divides(p, floor, seed):
    bias = np.random.default_rng(seed).uniform(0.05, 1, p.shape[1]).astype(np.float32)
    expected = [
        [max(float(x), floor) / float(b) for x, b in zip(row, bias, strict=True)] for row in p
    ]
    assert debias(p, bias, floor) == pytest.approx(np.array(expected), rel=1e-5)


@given(probabilities(), st.sampled_from(["one_over_classes", 0.0, 0.3]), st.booleans())
def test_the_floor_and_the_division_are_asked_for_each_by_itself(p, floor, divided):
    params = parse_params(read_yaml(PARAMS_FILE))
    bias = np.linspace(0.2, 1, p.shape[1]).astype(np.float32)
    least = 1 / p.shape[1] if floor == "one_over_classes" else floor
    expected = np.maximum(p, np.float32(least)) / (bias if divided else 1)
    settings = params.labels.model_copy(update={"floor": floor})
    assert np.array_equal(labels_of(p, settings, bias if divided else None), expected)


@given(st.floats(0.01, 3), st.integers(2, 100))
def test_a_normalised_entropy_limit_counts_in_uniform_guesses(limit, classes):
    uniform = entropy(np.full((1, classes), 1 / classes))[0]
    assert entropy_limit_in_nats(limit, "normalised", classes) == pytest.approx(limit * uniform)
    assert entropy_limit_in_nats(limit, "nats", classes) == limit


@given(
    arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=unit),
    st.floats(0.1, 9),
)
def test_as_many_views_as_asked_go_to_the_best_scores_whatever_ties(scores, mean):
    chosen = best_candidates(scores, mean)
    wanted = min(max(round(len(scores) * mean), 1), scores.size)
    assert chosen.sum() == wanted
    assert sorted(scores[chosen]) == sorted(scores.ravel())[scores.size - wanted :]


def test_where_all_scores_tie_every_image_gets_as_many_views():
    chosen = best_candidates(np.ones((6, 20), np.float32), 5)
    assert chosen.sum(axis=1).tolist() == [5] * 6


@given(
    arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=unit),
    st.floats(0, 0.99),
)
def test_a_region_box_holds_exactly_the_extent_of_the_active_cells(activation, threshold):
    m = scale_to_unit(activation)
    x0, y0, x1, y1 = region_box(m, threshold)
    height, width = m.shape
    cells = [(r, c) for r in range(height) for c in range(width) if m[r, c] > threshold]
    assert (y0, y1) == (min(r for r, _ in cells) / height, (max(r for r, _ in cells) + 1) / height)
    assert (x0, x1) == (min(c for _, c in cells) / width, (max(c for _, c in cells) + 1) / width)


def test_a_region_box_is_tight_where_the_first_and_last_active_cells_are_not_its_corners():
    m = np.zeros((4, 4))
    m[0, 2] = m[1, 0] = m[2, 3] = m[3, 1] = 1  # row-major first is column 2, last is column 1
    assert region_box(m, 0.5).tolist() == [0, 0, 1, 1]


def test_a_flat_map_gives_the_whole_image():
    for value in (0.0, -3.0, 7.0):
        assert region_box(scale_to_unit(np.full((5, 7), value)), 0.95).tolist() == [0, 0, 1, 1]


def test_a_map_is_scaled_by_its_own_least_and_greatest_value():
    assert scale_to_unit(np.array([[-2.0, 0.0, 2.0]])).tolist() == [[0, 0.5, 1]]


@given(st.tuples(unit, unit, unit, unit), st.floats(0, 1), st.integers(1, 500), st.integers(1, 500))
def test_an_expanded_box_stays_in_the_image_and_holds_the_region(corners, offset, width, height):
    x0, x1 = sorted(corners[:2])
    y0, y1 = sorted(corners[2:])
    x1, y1 = max(x1, min(1, x0 + 0.01)), max(y1, min(1, y0 + 0.01))
    grown = expand_box(np.array([x0, y0, x1, y1]), offset)
    assert grown.tolist() == [
        max(x0 - offset, 0),
        max(y0 - offset, 0),
        min(x1 + offset, 1),
        min(y1 + offset, 1),
    ]
    left, top, right, bottom = box_in_pixels(grown, width, height)
    assert 0 <= left <= right <= width
    assert 0 <= top <= bottom <= height
    assert left <= grown[0] * width + 1e-5
    assert right >= grown[2] * width - 1e-5


def test_a_box_without_extent_is_one_pixel_in_the_image():
    assert box_in_pixels(np.full(4, 0.5), 10, 10).tolist() == [5, 5, 6, 6]
    assert box_in_pixels(np.array([1.0, 0.2, 1.0, 0.2]), 10, 5).tolist() == [9, 1, 10, 2]


def test_a_box_of_whole_pixels_is_kept_despite_rounding():
    assert box_in_pixels(np.array([0.29, 0.07, 0.55, 0.57]), 100, 100).tolist() == [29, 7, 55, 57]


@given(st.integers(1, 6), st.integers(0, 12), st.integers(1, 4), st.integers(0, 99))
def test_local_labels_are_the_greatest_probability_over_the_views(images, views, classes, seed):
    rng = np.random.default_rng(seed)
    p, owner = rng.random((views, classes)).astype(np.float32), rng.integers(0, images, views)
    local, viewed = pool_views(p, owner, images)
    for i in range(images):  # Eq. 5 and 6
        own = [p[n] for n in range(views) if owner[n] == i]
        assert viewed[i] == bool(own)
        assert local[i].tolist() == [max((q[c] for q in own), default=0) for c in range(classes)]


def test_the_best_view_may_have_a_negative_score():
    best, _ = pool_views(np.array([[-0.5, 0.1], [-0.2, -0.3]], np.float32), np.array([1, 1]), 2)
    assert best.tolist() == [[0, 0], [np.float32(-0.2), np.float32(0.1)]]


@given(st.integers(0, 99))
def test_centring_takes_a_classes_share_off_before_the_softmax(seed):
    rng = np.random.default_rng(seed)
    images, classes, centre = rng.normal(size=(5, 8)), rng.normal(size=(3, 8)), rng.normal(size=3)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    weights = np.exp((images @ classes.T - centre) / 0.7)
    expected = weights / weights.sum(axis=1, keepdims=True)
    found = class_probabilities(images, classes, 0.7, centre)
    assert np.allclose(found, expected, atol=1e-6)
    rounded = class_probabilities_in_half(images, classes, 0.7, centre)
    assert np.allclose(rounded, expected, atol=5e-3)


@given(st.integers(1, 6), st.integers(1, 4), st.floats(0, 1), st.integers(0, 99))
def test_fusion_is_the_weighted_sum_and_keeps_the_initial_label_without_a_view(n, c, alpha, seed):
    rng = np.random.default_rng(seed)
    initial, local = (
        rng.random((n, c)).astype(np.float32),
        2 * rng.random((n, c)).astype(np.float32),
    )
    viewed = rng.random(n) < 0.5
    fused = fuse(initial, local, viewed, alpha)
    for i in range(n):  # Eq. 7
        for k in range(c):
            both = alpha * float(initial[i, k]) + (1 - alpha) * float(local[i, k])
            expected = min(max(both if viewed[i] else float(initial[i, k]), 0), 1)
            assert fused[i, k] == pytest.approx(expected, abs=1e-6)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_the_losses_are_mean_binary_cross_entropies(n, c, seed):
    g = torch.Generator().manual_seed(seed)
    weak, strong = torch.randn(n, c, generator=g), torch.randn(n, c, generator=g)
    labels = torch.rand(n, c, generator=g)

    def literal(logits, targets):
        total = 0.0
        for z, y in zip(logits.flatten().tolist(), targets.flatten().tolist(), strict=True):
            s = 1 / (1 + math.exp(-z))
            total -= y * math.log(s) + (1 - y) * math.log(1 - s)
        return total / (n * c)

    assert float(label_loss(weak, labels)) == pytest.approx(literal(weak, labels), rel=1e-4)
    agreement = consistency_loss(weak, strong)
    assert float(agreement) == pytest.approx(literal(strong, weak.sigmoid()), rel=1e-4)


def test_no_gradient_of_the_consistency_loss_reaches_the_weak_view():
    weak = torch.randn(2, 3, requires_grad=True)
    strong = torch.randn(2, 3, requires_grad=True)
    consistency_loss(weak, strong).backward()
    assert weak.grad is None
    assert strong.grad is not None
    assert strong.grad.abs().sum() > 0


@given(st.lists(st.integers(0, 1000), max_size=12))
def test_the_stop_is_the_first_epoch_whose_successor_gains_more(history):
    literal = None
    for e in range(1, len(history) - 1):
        gain, following = history[e] - history[e - 1], history[e + 1] - history[e]
        if following > gain:
            literal = e
            break
    assert first_local_minimum(history) == literal


def test_a_stop_that_never_fires_is_none():
    assert first_local_minimum([10, 50, 70, 80, 85]) is None
    assert first_local_minimum([]) is None
    assert first_local_minimum([5.0]) is None
    assert first_local_minimum([math.nan] * 5) is None


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 99))
def test_average_precision_is_scikit_learns_and_undefined_without_a_positive(n, c, seed):
    rng = np.random.default_rng(seed)
    truth, scores = rng.random((n, c)) < 0.3, rng.random((n, c))
    values = per_class_average_precision(truth, scores)
    for k in range(c):
        if truth[:, k].any():
            assert values[k] == average_precision_score(truth[:, k], scores[:, k])
        else:
            assert math.isnan(values[k])
    defined = [v for v in values if not math.isnan(v)]
    mean = sum(defined) / len(defined) if defined else math.nan
    assert mean_average_precision(truth, scores) == pytest.approx(mean, nan_ok=True)


def test_micro_average_precision_ranks_all_pairs_together():
    truth = np.array([[True, False], [False, True]])
    scores = np.array([[0.9, 0.8], [0.1, 0.2]])
    assert micro_average_precision(truth, scores) == pytest.approx((1 + 2 / 3) / 2)
    assert math.isnan(micro_average_precision(np.zeros((2, 2), bool), scores))
