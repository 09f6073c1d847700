"""PIAA (ICML 2026): a classifier of patches that is made of them, by what the text says of them.

As published, with its constants for VOC, and restated without what depends on how many patches were
kept. `patches`, `bank` (n, dim) are unit embeddings of patches, `text` (classes, dim) of classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

KEPT = 512  # patches a class, at most
SHARPNESS = 60.0  # of what the text says of a patch, where the surest are chosen
REFINED = 100.0  # T_l for VOC: multiplied
FLAT = 500.0  # by which the logits are divided before the largest of the patches is taken
OF_PATCHES, OF_IMAGE = 200.0, 80.0  # tau_p and tau_g for VOC
SHARE = 0.1  # of the image's own score
SUREST = 0.5  # restated: of a class's patches, the share that it is fitted to again


class Bank(NamedTuple):
    """Patches (n, dim), what the text says of them (n, classes), each one's class (n,), entropy."""

    patches: Tensor
    p: Tensor
    label: Tensor
    entropy: Tensor


class Discriminant(NamedTuple):
    """Logits weight x + bias: weight (classes, dim), bias (classes,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, patches: Tensor) -> Tensor:
        """(…, classes) of (…, dim)."""
        return patches @ self.weight.T + self.bias


def empty_bank(text: Tensor) -> Bank:
    """Of no patch yet."""
    none = text[:0]
    return Bank(none, none @ text.T, none.new_zeros(0, dtype=torch.long), none.new_zeros(0))


def banked(bank: Bank, patches: Tensor, text: Tensor, kept: int = KEPT) -> Bank:
    """A bank with more patches: of each class, that is the likeliest by the text, the surest."""
    cosines = patches @ text.T
    p = (SHARPNESS * cosines).softmax(dim=1)
    entropy = -torch.special.xlogy(p, p).sum(dim=1)
    new = Bank(patches, p, cosines.argmax(dim=1), entropy)
    all_of = [torch.cat(parts) for parts in zip(bank, new, strict=True)]
    label, entropy = all_of[2], all_of[3]
    order = entropy.argsort(stable=True)
    surest = [order[label[order] == c][:kept] for c in range(len(text))]
    return Bank(*(of[torch.cat(surest)] for of in all_of))


def fitted(patches: Tensor, label: Tensor, weights: Tensor, empty: Tensor) -> Discriminant:
    """Gaussian discriminant analysis of a shared covariance, shrunken, in closed form.

    weights (n, classes): how much a patch counts for the mean of its class `label`; empty
    (classes, dim): the mean of a class without any. P = d pinv((n - 1) S + tr(S) I).
    """
    classes, dim = empty.shape
    own = weights * torch.nn.functional.one_hot(label, classes)
    total = own.sum(dim=0)[:, None]
    means = torch.where(total > 0, own.T @ patches / total.clamp(min=1e-30), empty)
    apart = (patches - means[label]).double()
    apart = apart - apart.mean(dim=0)
    scatter = apart.T @ apart
    trace = scatter.trace() / max(len(patches) - 1, 1)
    shrunken = scatter + trace * torch.eye(dim, dtype=scatter.dtype, device=scatter.device)
    precision = dim * torch.linalg.pinv(shrunken, hermitian=True)
    weight = means.double() @ precision
    bias = -torch.tensor(float(classes)).log() - 0.5 * (weight * means).sum(dim=1)
    return Discriminant(weight.to(patches), bias.to(patches))


def published(bank: Bank, text: Tensor) -> Discriminant:
    """Fitted to the bank, then once more to what is at least as sure as most of its class.

    With T_l of VOC the posteriors are 1 to the last digit, so that all of a class stay, or, where
    one is below, none of them, and the class falls back to its text.
    """
    first = fitted(bank.patches, bank.label, bank.p, text)
    r = (REFINED * first(bank.patches)).softmax(dim=1)
    label = r.argmax(dim=1)
    own = r.gather(1, label[:, None])[:, 0]
    keep = torch.zeros_like(own, dtype=torch.bool)
    for c in range(len(text)):
        of_class = own[label == c]
        spread = of_class.std() if len(of_class) > 1 else 0.0
        keep |= (label == c) & (own >= of_class.mean() + spread)
    if keep.sum() <= len(label[keep].bincount().nonzero()):  # nothing is left of their spread
        return first
    return fitted(bank.patches[keep], label[keep], r[keep], text)


def published_scores(logits: Tensor, whole: Tensor) -> Tensor:
    """PAA: (images, classes) of the patches' logits (images, patches, classes) and, of the whole
    images, cosines `whole` (images, classes).
    """
    most = (logits / FLAT).softmax(dim=-1).amax(dim=1)
    of_patches = (OF_PATCHES * most).softmax(dim=-1)
    return SHARE * (OF_IMAGE * whole).softmax(dim=-1) + (1 - SHARE) * of_patches


def restated(bank: Bank, text: Tensor) -> Discriminant:
    """The same classifier, on a scale that does not depend on how many patches there are.

    A class without any borrows the way from text to patches of the others; it is fitted again to
    the surest half of each class; and the logits, centred over the classes, have a deviation of 1.
    """
    first = fitted(bank.patches, bank.label, bank.p, borrowed(bank, text))
    margin, label = of_classes_apart(first(bank.patches)).max(dim=1)
    keep = torch.zeros_like(margin, dtype=torch.bool)
    for c in range(len(text)):
        if (label == c).any():
            keep |= (label == c) & (margin >= margin[label == c].quantile(1 - SUREST))
    ones = torch.ones_like(bank.p[keep])
    again = fitted(bank.patches[keep], label[keep], ones, borrowed(bank, text))
    scale = of_classes_apart(again(bank.patches)).std()
    return Discriminant(again.weight / scale, again.bias / scale)


def borrowed(bank: Bank, text: Tensor) -> Tensor:
    """A mean (classes, dim) for a class without patches: its text, shifted as the others are."""
    of_class = [bank.patches[bank.label == c] for c in range(len(text))]
    shifts = [own.mean(dim=0) - text[c] for c, own in enumerate(of_class) if len(own)]
    return text + torch.stack(shifts).mean(dim=0)


def of_classes_apart(logits: Tensor) -> Tensor:
    """Logits (…, classes) less their mean."""
    return logits - logits.mean(dim=-1, keepdim=True)


def restated_scores(logits: Tensor, whole: Tensor) -> Tensor:
    """The largest of the patches' centred logits, made probabilities, and the whole image's.

    logits: (images, patches, classes); whole: probabilities of the whole images (images, classes).
    """
    of_patches = of_classes_apart(logits).amax(dim=1).softmax(dim=-1)
    return SHARE * whole + (1 - SHARE) * of_patches
