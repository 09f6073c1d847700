"""Every objective of Table 1, and its gradient, is its formula written out pair by pair."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from experiments import objectives as o

Scalars = list[list[Tensor]]


def case(seed: int, observed_values: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Logits (5, 4) in double precision, some far out, and what is observed; a row of unknowns."""
    rng = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 4, generator=rng, dtype=torch.float64)
    picked = torch.randint(0, len(observed_values), (5, 4), generator=rng)
    observed = torch.tensor(observed_values)[picked]
    observed[0] = 0
    return logits, observed


def pairs(logits: Tensor, pair: Callable[[Tensor, int], Tensor], observed: Tensor) -> Tensor:
    """The mean over images and classes of `pair`."""
    losses = [
        pair(x, int(known))
        for row, of_row in zip(logits, observed, strict=True)
        for x, known in zip(row, of_row, strict=True)
    ]
    return torch.stack(losses).mean()


def bce(x: Tensor, target: float) -> Tensor:
    p = 1 / (1 + torch.exp(-x))
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p))


def literal_partial(logits: Tensor, observed: Tensor) -> Tensor:
    losses = []
    for row, of_row in zip(logits, observed, strict=True):
        known = [c for c in range(4) if of_row[c] != 0]
        total = sum((bce(row[c], float(of_row[c] > 0)) for c in known), 0 * row.sum())
        losses.append((-4.45 * len(known) / 4 + 5.45) / 4 * total)
    return torch.stack(losses).mean()


def literal_asymmetric(x: Tensor, known: int) -> Tensor:
    p = 1 / (1 + torch.exp(-x))
    if known == 0:
        return 0 * x
    if known > 0:
        return float((1 - p).detach()) ** 1.0 * -torch.log(p)
    shifted = p - 0.05 if p > 0.05 else 0 * p
    return float(shifted.detach()) ** 4.0 * -torch.log(1 - shifted)


def literal_em(x: Tensor, known: int) -> Tensor:
    p = 1 / (1 + torch.exp(-x))
    if known > 0:
        return -torch.log(p)
    return 0.2 * (p * torch.log(p) + (1 - p) * torch.log(1 - p))


def least_likely() -> Tensor:
    """What was taken for absent, and how likely present it was then; NaN elsewhere."""
    absent = torch.full((5, 4), torch.nan, dtype=torch.float64)
    absent[0, 1], absent[2, 3], absent[0, 0] = 0.1, 0.02, 0.3
    return absent


def literal_acknowledged(logits: Tensor, observed: Tensor) -> Tensor:
    total = 0 * logits.sum()
    for i in range(5):
        for c in range(4):
            was = float(least_likely()[i, c])
            if observed[i, c] > 0 or was != was:
                total = total + literal_em(logits[i, c], int(observed[i, c]))
            else:
                total = total + 0.02 * bce(logits[i, c], was)
    return total / 20


def literal_large(flip: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(logits: Tensor, observed: Tensor) -> Tensor:
        free = [(i, c) for i in range(5) for c in range(4) if observed[i, c] == 0]
        free.sort(key=lambda place: float(logits[place]), reverse=True)
        suspect = set(free[:3])
        total = 0 * logits.sum()
        for i in range(5):
            for c in range(4):
                if (i, c) not in suspect:
                    total = total + bce(logits[i, c], float(observed[i, c] > 0))
                elif flip:
                    total = total + bce(logits[i, c], 1.0)
        return total / 20

    return loss


def literal_divergence(logits: Tensor, observed: Tensor) -> Tensor:
    total = 0 * logits.sum()
    for y, x in zip((soft(observed)).flatten(), logits.flatten(), strict=True):
        q = 1 / (1 + torch.exp(-x))
        total = total + y * torch.log(y / q) + (1 - y) * torch.log((1 - y) / (1 - q))
    return total / 20


def soft(observed: Tensor) -> Tensor:
    return 0.5 + 0.3 * observed.double()


def soft_labels() -> Tensor:
    return torch.rand(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def literal_game(logits: Tensor, observed: Tensor) -> Tensor:
    labels, total = soft_labels(), 0 * logits.sum()
    for i in range(5):
        for c in range(4):
            y = labels[i, c]
            if observed[i, c] != 0:
                total = total + bce(logits[i, c], float(observed[i, c] > 0))
            else:
                total = total + 0.7 * abs(2 * y - 1) * bce(logits[i, c], float(y))
    return total / 20


OBJECTIVES = {
    "BCE": (
        lambda x, known: o.cross_entropy(x, o.present(known, x)).mean(),
        lambda x, known: pairs(x, lambda a, k: bce(a, float(k > 0)), known),
    ),
    "BCE, smoothed": (
        lambda x, known: o.cross_entropy(x, o.smoothed(o.present(known, x))).mean(),
        lambda x, known: pairs(x, lambda a, k: bce(a, 0.9 if k > 0 else 0.1), known),
    ),
    "WAN": (
        o.weak_assume_negative,
        lambda x, known: pairs(x, lambda a, k: bce(a, 1.0) if k > 0 else bce(a, 0.0) / 3, known),
    ),
    "partial BCE": (o.partial_cross_entropy, literal_partial),
    "ASL": (o.asymmetric, lambda x, known: pairs(x, literal_asymmetric, known)),
    "EM": (o.entropy_maximisation, lambda x, known: pairs(x, literal_em, known)),
    "EM + APL": (lambda x, known: o.acknowledged(x, known, least_likely()), literal_acknowledged),
    "LL-R": (lambda x, known: o.large_loss_rejection(x, known, 3), literal_large(flip=False)),
    "LL-Ct": (lambda x, known: o.large_loss_correction(x, known, 3), literal_large(flip=True)),
    "G2NetPL": (lambda x, known: o.game(x, soft_labels().to(x), known, 0.7), literal_game),
    "CDUL": (lambda x, known: o.bernoulli_divergence(soft(known), x), literal_divergence),
}


@pytest.mark.parametrize("values", [(1, 0), (1, 0, -1)])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_and_its_gradient_are_the_formulas(name: str, values: tuple[int, ...]):
    ours, literal = OBJECTIVES[name]
    for seed in range(10):
        logits, observed = case(seed, values)
        found, expected = (logits.clone().requires_grad_() for _ in range(2))
        one, other = ours(found, observed), literal(expected, observed)
        assert one.item() == pytest.approx(other.item(), rel=1e-6)
        one.backward()
        other.backward()
        assert torch.allclose(found.grad, expected.grad, rtol=1e-5, atol=1e-8)


def test_role_and_its_gradients_are_the_formula():
    for seed in range(10):
        logits, observed = case(seed, (1, 0))
        table = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed + 99)).double()
        leaves = [[t.clone().requires_grad_() for t in (logits, table)] for _ in range(2)]
        one = o.role(*leaves[0], observed, 1.5)
        other = literal_role(*leaves[1], observed, 1.5)
        assert one.item() == pytest.approx(other.item(), rel=1e-6)
        one.backward()
        other.backward()
        for found, expected in zip(*leaves, strict=True):
            assert torch.allclose(found.grad, expected.grad, rtol=1e-5, atol=1e-8)


def literal_role(logits: Tensor, table: Tensor, observed: Tensor, k: float) -> Tensor:
    total = 0 * logits.sum()
    for own, other in ((logits, table), (table, logits)):
        count = 0 * logits.sum()
        for i in range(5):
            for c in range(4):
                p, q = 1 / (1 + torch.exp(-own[i, c])), 1 / (1 + torch.exp(-other[i, c].detach()))
                if observed[i, c] > 0:
                    total = total - torch.log(p) / 20 / 2
                total = total - (q * torch.log(p) + (1 - q) * torch.log(1 - p)) / 20 / 2
                count = count + p
        total = total + ((count / 5 - k) / 4) ** 2 / 2
    return total


def test_extreme_logits_give_finite_losses_and_gradients():
    observed = torch.tensor([[1, 0, -1, 1]] * 5)
    for name, (ours, _) in OBJECTIVES.items():
        for far in (80.0, -80.0):
            logits = torch.full((5, 4), far, requires_grad=True)
            loss = ours(logits, observed)
            loss.backward()
            assert torch.isfinite(loss), name
            assert torch.isfinite(logits.grad).all(), name
    logits, table = (torch.full((5, 4), far, requires_grad=True) for far in (80.0, -80.0))
    o.role(logits, table, observed, 1.5).backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(table.grad).all()


def test_the_number_of_large_losses_grows_with_the_epochs_after_the_first():
    assert o.large_count(320, 1, 0.005) == 0
    assert [o.large_count(320, epoch, 0.005) for epoch in (2, 3, 5)] == [2, 4, 7]
    assert [o.large_count(320, epoch, 0.001, growing=False) for epoch in (1, 2, 9)] == [0, 1, 1]
    assert not o.large(torch.ones(2, 2), torch.ones(2, 2), 3).any()


@pytest.mark.parametrize("threshold", [0.0, 0.3, 2.0])
def test_snippets_are_aggregated_class_by_class(threshold: float):
    snippets = torch.rand(6, 9, 5, generator=torch.Generator().manual_seed(1))
    found = o.aggregated(snippets, threshold)
    for i in range(6):
        for c in range(5):
            of_class = snippets[i, :, c].tolist()
            wanted = max(of_class) if max(of_class) >= threshold else min(of_class)
            assert found[i, c].item() == wanted


def test_a_label_step_descends_the_divergence_from_the_predictions():
    """The step is by the gradient of KL(label || prediction), scaled by the bell at the label."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.rand(6, 5, generator=rng, dtype=torch.float64) * 0.98 + 0.01
    p = torch.rand(6, 5, generator=rng, dtype=torch.float64) * 0.98 + 0.01
    y = labels.clone().requires_grad_()
    (y * torch.log(y / p) + (1 - y) * torch.log((1 - y) / (1 - p))).sum().backward()
    normal = torch.distributions.Normal(torch.tensor(0.5).double(), torch.tensor(0.7).double())
    latent = torch.logit(labels) - normal.log_prob(labels).exp() * y.grad
    assert torch.allclose(o.aligned_labels(labels, p, width=0.7), latent.sigmoid())
    moved = o.aligned_labels(labels, p)
    assert ((moved - labels) * (p - labels) > 0).all()
    certain = torch.tensor([0.0, 1.0])
    assert torch.isfinite(o.aligned_labels(certain, 1 - certain)).all()


def test_a_played_label_descends_indecision_and_distance_from_the_prediction():
    rng = torch.Generator().manual_seed(0)
    labels, p = torch.rand(2, 6, 5, generator=rng, dtype=torch.float64)
    y = labels.clone().requires_grad_()
    (y * (1 - y) + 4 / 2 * (y - p) ** 2).sum().backward()
    assert torch.allclose(o.played_labels(labels, p), (labels - 0.25 * y.grad).clamp(0, 1))


def test_played_labels_end_at_absent_or_present_as_the_prediction_says():
    labels, p = torch.full((3,), 0.5), torch.tensor([0.1, 0.24, 0.8])
    for _ in range(50):
        labels = o.played_labels(labels, p)
    assert labels.tolist() == [0, 0, 1]


def test_what_is_likely_present_counts_in_that_proportion():
    """For the losses without a count of what is known: between all and nothing, linearly."""
    logits, _ = case(3, (1, 0))
    for name in ("BCE", "EM", "ASL"):
        ours, _ = OBJECTIVES[name]
        ones = torch.ones_like(logits)
        ends = [ours(logits, torch.full_like(logits, end)).item() for end in (1.0, 1e-9)]
        assert ours(logits, 0.25 * ones).item() == pytest.approx(
            0.25 * ends[0] + 0.75 * ends[1], rel=1e-5
        )
