"""The losses of the methods that the paper's Table 1 compares CCD with, as pure functions.

`observed` (images, classes) is what is known of the labels: 1 present, -1 absent, 0 unknown; or, in
between, how likely present, which counts in that proportion. Losses take logits (images, classes),
and are means over both, unless said otherwise.

Where a constant is unpublished, or only remembered, its comment says so.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-5  # of a probability whose logarithm is taken, where the method clips


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of every pair, to targets in [0, 1]: (images, classes)."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def of_known(losses: Tensor, observed: Tensor) -> Tensor:
    """Their mean, those of unknown labels counting 0."""
    return (losses * (observed != 0)).mean()


def smoothed(targets: Tensor, amount: float = 0.1) -> Tensor:
    """Targets with label smoothing on both sides: 1 - amount for 1, amount for 0."""
    return targets * (1 - amount) + (1 - targets) * amount


def present(observed: Tensor, like: Tensor) -> Tensor:
    """Targets that assume every unknown label absent (Naive AN), in the type of `like`."""
    return observed.to(like).clamp(min=0)


def weak_assume_negative(logits: Tensor, observed: Tensor) -> Tensor:
    """WAN (Mac Aodha et al.; Cole et al. 2021): what is not observed weighs 1 / (classes - 1)."""
    targets = present(observed, logits)
    weight = targets + (1 - targets) / max(logits.shape[1] - 1, 1)
    return (weight * cross_entropy(logits, targets)).mean()


def partial_cross_entropy(
    logits: Tensor, observed: Tensor, slope: float = -4.45, offset: float = 5.45, power: float = 1.0
) -> Tensor:
    """Partial BCE (Durand et al. 2019): known labels alone, more of each where fewer are known.

    The sum over an image's known labels is divided by all classes and multiplied by
    slope * share ** power + offset, share being that of the known ones; 1 where all are known.
    An image of which nothing is known counts 0.
    """
    known = (observed != 0).to(logits)
    share = known.mean(dim=1)
    weight = slope * share**power + offset
    losses = known * cross_entropy(logits, present(observed, logits))
    return (weight * losses.mean(dim=1)).mean()


def asymmetric(
    logits: Tensor,
    observed: Tensor,
    focus_present: float = 1.0,
    focus_absent: float = 4.0,
    margin: float = 0.05,
) -> Tensor:
    """ASL (Ridnik et al. 2021) of the known labels; no gradient flows through the focusing weight.

    Published as a sum over classes and images; a mean here, so that learning rates can be shared.
    """
    p = logits.sigmoid()
    shifted = (p - margin).clamp(min=0)  # probable absence within the margin costs nothing
    of_present = (1 - p).detach() ** focus_present * -F.logsigmoid(logits)
    of_absent = shifted.detach() ** focus_absent * -torch.log1p(-shifted.clamp(max=1 - 1e-7))
    targets = present(observed, logits)
    return of_known(targets * of_present + (1 - targets) * of_absent, observed)


def role(logits: Tensor, label_logits: Tensor, observed: Tensor, expected: float) -> Tensor:
    """ROLE (Cole et al. 2021): classifier and a table of estimated labels teach each other.

    label_logits: the table's rows, which are learned too. expected: positives an image, on average
    (1.5 for VOC, 2.9 for COCO, 1.9 for NUS-WIDE).
    """
    p, q = logits.sigmoid(), label_logits.sigmoid()
    of_classifier = _taught(p, q.detach(), observed, expected)
    return (of_classifier + _taught(q, p.detach(), observed, expected)) / 2


def _taught(p: Tensor, teacher: Tensor, observed: Tensor, expected: float) -> Tensor:
    log_p, log_rest = p.clamp(min=LEAST).log(), (1 - p).clamp(min=LEAST).log()
    of_observed = -present(observed, p) * log_p
    to_teacher = -(teacher * log_p + (1 - teacher) * log_rest)
    count = (p.sum(dim=1).mean() - expected) / p.shape[1]
    return (of_observed + to_teacher).mean() + count**2


def entropy_maximisation(logits: Tensor, observed: Tensor, weight: float = 0.2) -> Tensor:
    """EM (Zhou et al. 2022): what is not observed is pushed to be undecided, not absent.

    weight: of the entropy; as remembered for VOC, to be checked against the authors' table.
    """
    targets = present(observed, logits)
    return (-targets * F.logsigmoid(logits) - (1 - targets) * weight * _entropy(logits)).mean()


def acknowledged(
    logits: Tensor, observed: Tensor, absent: Tensor, weight: float = 0.2, of_absent: float = 0.02
) -> Tensor:
    """EM + APL (Zhou et al. 2022): EM, but for what is taken for absent, softly.

    absent (images, classes): how likely present a label was when it was taken for absent, NaN where
    it was not. Both weights are as remembered.
    """
    soft = cross_entropy(logits, absent.nan_to_num().to(logits))
    unknown = torch.where(absent.isnan(), -weight * _entropy(logits), of_absent * soft)
    return torch.where(observed > 0, -F.logsigmoid(logits), unknown).mean()


def _entropy(logits: Tensor) -> Tensor:
    p = logits.sigmoid()
    return -(p * F.logsigmoid(logits) + (1 - p) * F.logsigmoid(-logits))


def large(losses: Tensor, observed: Tensor, count: int) -> Tensor:
    """Which pairs (images, classes) have the `count` largest losses of the unobserved ones.

    As large as the smallest of those counts too, so there may be more (Kim et al. 2022).
    """
    free = observed == 0
    count = min(count, int(free.sum()))
    if count == 0:
        return torch.zeros_like(free)
    least = losses.detach()[free].topk(count).values[-1]
    return free & (losses.detach() >= least)


def large_count(pairs: int, epoch: int, share: float, growing: bool = True) -> int:
    """How many of a batch's pairs count as false negatives in `epoch`, from 1: none in the first.

    share: of the pairs: 0.005 for LL-R, 0.002 for LL-Ct, 0.001 for LL-Cp; growing: times the epochs
    before, as for LL-R and LL-Ct.
    """
    if epoch <= 1:
        return 0
    return math.ceil(pairs * share * (epoch - 1 if growing else 1))


def large_loss_rejection(logits: Tensor, observed: Tensor, count: int) -> Tensor:
    """LL-R (Kim et al. 2022): assumed negatives with the largest losses do not count."""
    losses = cross_entropy(logits, present(observed, logits))
    return (losses * ~large(losses, observed, count)).mean()


def large_loss_correction(logits: Tensor, observed: Tensor, count: int) -> Tensor:
    """LL-Ct (Kim et al. 2022): assumed negatives with the largest losses count as positives.

    LL-Cp keeps them as positives: set `observed` to 1 where `large` says so.
    """
    targets = present(observed, logits)
    suspect = large(cross_entropy(logits, targets), observed, count)
    return cross_entropy(logits, targets + suspect.to(targets)).mean()


def aggregated(snippets: Tensor, threshold: float) -> Tensor:
    """CDUL (Abdelfattah et al. 2023, Eq. 5-6): probabilities of snippets as one, (images, classes).

    snippets: (images, snippets, classes). The largest of a class if it reaches `threshold`, or else
    the smallest.
    """
    most, least = snippets.amax(dim=1), snippets.amin(dim=1)
    return torch.where(most >= threshold, most, least)


def bernoulli_divergence(labels: Tensor, logits: Tensor) -> Tensor:
    """CDUL's Kullback-Leibler divergence of the predictions from soft labels, class by class."""
    log_p, log_rest = F.logsigmoid(logits), F.logsigmoid(-logits)
    own: Tensor = torch.special.xlogy(labels, labels) + torch.special.xlogy(1 - labels, 1 - labels)
    return (own - labels * log_p - (1 - labels) * log_rest).mean()


def aligned_labels(labels: Tensor, p: Tensor, width: float = 1.0, least: float = 1e-4) -> Tensor:
    """CDUL's label step (Eq. 7-8): soft labels, moved towards the predictions `p`.

    A label's logit descends the divergence, by a bell of `width` around 1/2 evaluated at the label,
    so that undecided labels move most. width is unpublished; 1 is the reproduction study's.
    """
    labels, p = (values.clamp(least, 1 - least) for values in (labels, p))
    bell = torch.exp(-((labels - 0.5) ** 2) / (2 * width**2)) / (width * math.sqrt(2 * math.pi))
    slope = torch.logit(labels) - torch.logit(p)
    return (torch.logit(labels) - bell * slope).sigmoid()


def game(logits: Tensor, labels: Tensor, observed: Tensor, weight: float) -> Tensor:
    """G2NetPL's network player (Abdelfattah et al. 2022), as far as it is known.

    Known labels, and for the others the soft pseudo-labels `labels`, each as much as it is decided,
    times `weight`, which grows with the epochs.
    """
    known = (observed != 0).to(logits)
    share = known + (1 - known) * weight * (2 * labels - 1).abs()
    targets = known * present(observed, logits) + (1 - known) * labels
    return (share * cross_entropy(logits, targets)).mean()


def played_labels(labels: Tensor, p: Tensor, rate: float = 0.25, hold: float = 4.0) -> Tensor:
    """G2NetPL's pseudo-label player: a step of soft labels towards 0 or 1.

    It descends y (1 - y) + hold / 2 (y - p) ** 2, which ends at 0 or 1 unless the prediction `p`
    holds it back. Rate and hold are unpublished; these are this project's own.
    """
    slope = (1 - 2 * labels) + hold * (labels - p)
    return (labels - rate * slope).clamp(0, 1)
