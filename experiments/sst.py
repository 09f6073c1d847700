"""SST (Chen et al., AAAI 2022): unknown labels from classes seen together, and from other images.

An image that shows a class is likely to show its companions; and features of a class that are like
those of images known to show it say that it is there. Both only ever add positives. What is not
said of its constants, or follows from other lengths of training, is marked in docs/experiments.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.decoupled import (
    Decoupled,
    Ramp,
    bce_of_known,
    begins,
    contrastive,
    of_those,
)
from experiments.objectives import asymmetric
from stages.method.objective import Objective

WIDTH = 512  # of a class's features, where two are compared
MEMORY = 100  # features of images that show a class
TOGETHER, CONTRAST = 10.0, 0.05  # weights of two losses
MARGINS, FALL = (0.95, 0.75), 0.4  # of the epochs, until the margin has fallen


class Pairs(nn.Module):
    """Whether two classes are in an image: logits (n, classes, classes) of its features."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(features, WIDTH)
        self.inner = nn.Linear(2 * WIDTH, 2 * WIDTH)
        self.out = nn.Linear(2 * WIDTH, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Of features (n, classes, features); symmetric, and 0 of a class with itself."""
        narrow, classes = self.narrow(features), features.shape[1]
        i, j = torch.triu_indices(classes, classes, offset=1, device=features.device)
        both = torch.cat([narrow[:, i], narrow[:, j]], dim=-1)
        logits: Tensor = self.out(self.inner(both).relu())[..., 0]
        square: Tensor = logits.new_zeros(len(features), classes, classes)
        square[:, i, j] = square[:, j, i] = logits
        return square


class Sst(Objective):
    """Its losses, of what is observed (images, classes): 1 present, -1 absent, 0 unknown.

    Also keeps the features of the latest images that show a class: memory (classes, MEMORY,
    features), of which `filled` (classes,) are in use.
    """

    memory: Tensor
    filled: Tensor

    def __init__(self, observed: Tensor, head: Decoupled, epochs: int) -> None:
        super().__init__(observed)
        features = head.weight.shape[1]
        self.heads = (head,)  # a tuple: the optimiser has it already
        self.pairs = Pairs(features)
        self.epochs, self.ramp = epochs, Ramp(len(observed))
        classes = observed.shape[1]
        self.register_buffer("memory", torch.zeros(classes, MEMORY, features))
        self.register_buffer("filled", torch.zeros(classes, dtype=torch.long))

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """The sum of the five; see the module."""
        observed, features = self.labels[rows], self.heads[0].seen
        high = self.ramp.step(len(rows), epoch)
        pairs = self.pairs(features)
        loss = bce_of_known(logits, observed)
        loss = loss + high * TOGETHER * of_pairs(pairs, observed)
        loss = loss + high * CONTRAST * contrastive(features, observed)
        if epoch >= begins(self.epochs):
            likely = (
                implied_within(pairs.detach().sigmoid(), observed),
                implied_across(features.detach(), self.memory, self.filled),
            )
            for share in likely:
                chosen = (observed == 0) & (share >= margin(epoch, self.epochs))
                loss = loss + of_those(-F.logsigmoid(logits), chosen)
        self.remember(features.detach(), observed)
        return loss

    @torch.no_grad()
    def remember(self, features: Tensor, observed: Tensor) -> None:
        """The features of what is known to be present push the oldest out."""
        for c in range(features.shape[1]):
            new = features[observed[:, c] > 0, c]
            self.memory[c] = torch.cat([new, self.memory[c]])[:MEMORY]
            self.filled[c] = min(MEMORY, int(self.filled[c]) + len(new))


def of_pairs(pairs: Tensor, observed: Tensor) -> Tensor:
    """The asymmetric loss of whether two classes are both known to be present, else not."""
    known = observed > 0
    both = known[:, :, None] & known[:, None, :]
    i, j = torch.triu_indices(pairs.shape[1], pairs.shape[1], offset=1, device=pairs.device)
    targets = torch.where(both[:, i, j], 1, -1)
    return asymmetric(pairs[:, i, j], targets, focus_absent=2.0)


def implied_within(p: Tensor, observed: Tensor) -> Tensor:
    """(n, classes): the mean of p (n, classes, classes) over the classes known to be present."""
    known = (observed > 0).to(p)
    return (p @ known[:, :, None])[..., 0] / known.sum(dim=1, keepdim=True).clamp(min=1)


def implied_across(features: Tensor, memory: Tensor, filled: Tensor) -> Tensor:
    """(n, classes): the mean cosine of a class's features to those in memory; 0 to none."""
    unit = F.normalize(features, dim=-1), F.normalize(memory, dim=-1)
    cosines = torch.einsum("ncf,cmf->ncm", *unit)
    return cosines.sum(dim=-1) / filled.clamp(min=1)


def margin(epoch: int, epochs: int) -> float:
    """How likely an unknown label must be to count as present, in an epoch from 1."""
    highest, least = MARGINS
    passed = (epoch - begins(epochs)) / (FALL * epochs)
    return max(least, highest - (highest - least) * passed)
