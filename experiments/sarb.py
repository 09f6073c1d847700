"""SARB (Pu et al., AAAI 2022): features of a class that is unknown, blended with known ones.

Of another image that shows the class, or of a prototype, one of the centres of such images: what is
learned is then to say how much of the class was blended in.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2
from torch import Tensor, nn

from experiments.decoupled import Decoupled, Ramp, bce_of_known, begins, contrastive, of_those
from stages.method.objective import Objective

PROTOTYPES = 10  # a class
RENEWED = 0.25  # of the epochs, between two searches of prototypes; published: 5 of 20
CONTRAST = 0.05


class Sarb(Objective):
    """Its losses, of what is observed (images, classes): 1 present, -1 absent, 0 unknown.

    shares: how much of the image's own features stays, with another image's and with a prototype;
    learned. prototypes (classes, PROTOTYPES, features), of which `filled` (classes,) are in use.
    """

    prototypes: Tensor
    filled: Tensor

    def __init__(self, observed: Tensor, head: Decoupled, epochs: int, seed: int) -> None:
        super().__init__(observed)
        self.heads = (head,)
        self.shares = nn.Parameter(torch.tensor([0.5, 0.5]))
        self.epochs, self.seed, self.ramp = epochs, seed, Ramp(len(observed))
        self.positives: list[tuple[Tensor, Tensor]] = []  # features that show a class, and which
        classes, features = head.weight.shape
        self.register_buffer("prototypes", torch.zeros(classes, PROTOTYPES, features))
        self.register_buffer("filled", torch.zeros(classes, dtype=torch.long))

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """The sum of the four; see the module."""
        observed, (head,) = self.labels[rows], self.heads
        features = head.seen
        high = self.ramp.step(len(rows), epoch)
        loss = bce_of_known(logits, observed)
        loss = loss + high * CONTRAST * contrastive(features, observed)
        if self.looks_in(epoch):
            shown = observed > 0
            self.positives.append((features.detach()[shown].cpu(), shown.nonzero()[:, 1].cpu()))
        if epoch < begins(self.epochs):
            return loss
        of_image, of_prototype = self.shares.clamp(0, 1)
        other, chosen = features.flip(0), (observed == 0) & (observed.flip(0) > 0)
        loss = loss + blended_loss(head, features, other, observed, chosen, of_image)
        other, chosen = self.drawn(observed)
        return loss + blended_loss(head, features, other, observed, chosen, of_prototype)

    def drawn(self, observed: Tensor) -> tuple[Tensor, Tensor]:
        """A random prototype (n, classes, features) of each class, and one unknown class an image,
        at random, of those that have prototypes (n, classes).
        """
        images, classes = observed.shape
        place = torch.rand(images, classes).to(observed.device)
        place = (place * self.filled).long()
        drawn = self.prototypes[torch.arange(classes, device=observed.device), place]
        free = (observed == 0) & (self.filled > 0)
        lots = torch.rand(images, classes).to(observed.device) * free
        chosen = F.one_hot(lots.argmax(dim=1), classes).bool() & free
        return drawn, chosen

    def looks_in(self, epoch: int) -> bool:
        """Whether prototypes are sought at its end: before the first blending, then at times."""
        first, every = begins(self.epochs) - 1, max(1, round(RENEWED * self.epochs))
        return epoch >= first and (epoch - first) % every == 0

    def end_epoch(self, predicted: Tensor, epoch: int) -> None:
        """Look for prototypes anew, by what the epoch saw of each class."""
        if self.looks_in(epoch):
            features, of_class = (torch.cat(of) for of in zip(*self.positives, strict=True))
            for c in range(len(self.filled)):
                centres = centres_of(features[of_class == c], self.seed)
                self.prototypes[c, : len(centres)] = centres
                self.filled[c] = len(centres)
        self.positives = []


def blended_loss(
    head: Decoupled, features: Tensor, other: Tensor, observed: Tensor, chosen: Tensor, own: Tensor
) -> Tensor:
    """Binary cross-entropy where the `chosen` classes' features (n, classes, features) are blended
    with others, of which `own` stays; of these, the target is how much is blended in.
    """
    blended = torch.where(chosen[..., None], own * features + (1 - own) * other, features)
    targets = torch.where(chosen, 1 - own.detach(), (observed > 0).to(features))
    losses = F.binary_cross_entropy_with_logits(head.classify(blended), targets, reduction="none")
    return of_those(losses, chosen | (observed != 0))


def centres_of(features: Tensor, seed: int) -> Tensor:
    """Prototypes (at most PROTOTYPES, features) of (n, features), by k-means."""
    if len(features) <= PROTOTYPES:
        return features
    points = features.double().cpu().numpy()
    rng = np.random.default_rng(seed)
    centres, _ = kmeans2(points, PROTOTYPES, minit="++", rng=rng, missing="warn")
    return torch.from_numpy(centres).to(features)
