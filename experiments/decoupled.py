"""What SST and SARB have in common: features a class, a graph over the classes, a logit a class.

Chen et al. (AAAI 2022) and Pu et al. (AAAI 2022), restated from descriptions of them. The originals
say a class by GloVe's vector; here it is the teacher's embedding of its name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

JOINT = 512  # numbers in which a cell and a class are compared
STEPS = 3  # of messages along the graph
BEGIN = 0.25  # of the epochs have passed when pseudo-labels begin; published: 5 of 20


class Decoupled(nn.Module):
    """Feature maps (n, features, rows, columns) to logits (n, classes).

    texts (classes, dim): what stands for the classes; graph (classes, classes): `co_occurrence`.
    seen: the features of each class (n, classes, features), of the latest pass.
    """

    texts: Tensor
    graph: Tensor

    def __init__(self, features: int, texts: Tensor, graph: Tensor) -> None:
        super().__init__()
        self.register_buffer("texts", texts.float())
        self.register_buffer("graph", graph.float())
        classes, dim = texts.shape
        self.of_cell = nn.Linear(features, JOINT, bias=False)
        self.of_class = nn.Linear(dim, JOINT, bias=False)
        self.attention = nn.Linear(JOINT, 1)
        self.gates = nn.GRUCell(2 * features, features)
        self.joined = nn.Linear(2 * features, features)
        self.weight = nn.Parameter(torch.randn(classes, features) * features**-0.5)
        self.bias = nn.Parameter(torch.zeros(classes))
        self.seen = torch.empty(0)

    def forward(self, maps: Tensor) -> Tensor:
        """Logits, and `seen` beside."""
        self.seen = self.decouple(maps).float()  # the objective goes on in single precision
        return self.classify(self.seen)

    def decouple(self, maps: Tensor) -> Tensor:
        """Each class's mean of the cells, weighed by how they go together with the class."""
        cells = maps.flatten(2).mT
        asked = self.of_class(self.texts)[None, :, None]
        scores = self.attention(torch.tanh(self.of_cell(cells)[:, None] * asked))[..., 0]
        of_class: Tensor = scores.softmax(dim=-1) @ cells
        return of_class

    def classify(self, of_class: Tensor) -> Tensor:
        """Logits of features (n, classes, features), after messages between the classes."""
        state = of_class
        for _ in range(STEPS):
            message = torch.cat([self.graph @ state, self.graph.T @ state], dim=-1)
            state = self.gates(message.flatten(0, 1), state.flatten(0, 1)).view_as(state)
        joined = torch.tanh(self.joined(torch.cat([state, of_class], dim=-1)))
        logits: Tensor = (joined * self.weight).sum(dim=-1) + self.bias
        return logits


def co_occurrence(observed: Tensor) -> Tensor:
    """(classes, classes): of the images known to show i, the share known to show j too; 0 for i."""
    known = (observed > 0).float()
    together = known.T @ known
    graph = together / known.sum(dim=0).clamp(min=1)[:, None]
    return graph.fill_diagonal_(0)


def of_those(losses: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the chosen losses; 0 of none."""
    return (losses * chosen).sum() / chosen.sum().clamp(min=1)


def bce_of_known(logits: Tensor, observed: Tensor) -> Tensor:
    """Binary cross-entropy, a mean over the known labels alone."""
    targets = (observed > 0).to(logits)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return of_those(losses, observed != 0)


def contrastive(features: Tensor, observed: Tensor) -> Tensor:
    """Features of a class alike where it is known to be present, unlike where it is absent.

    features (n, classes, features). Over the pairs of images, class by class: 1 - cosine of two
    that show it; 1 + cosine of one that does and one that does not, as many pairs as of the first
    kind, the most alike; and of two that do not, twice as many, at random. The mean over classes.
    """
    unit = F.normalize(features, dim=-1)
    losses = []
    for c in range(features.shape[1]):
        with_it, without = unit[observed[:, c] > 0, c], unit[observed[:, c] < 0, c]
        pull = upper(with_it)
        if not len(pull):
            continue
        parts = [1 - pull]
        mixed = (with_it @ without.T).flatten()
        if len(mixed):
            parts.append(1 + mixed.topk(min(len(pull), len(mixed))).values)
        apart = upper(without)
        if len(apart):
            order = torch.randperm(len(apart))[: 2 * len(pull)]
            parts.append(1 + apart[order.to(apart.device)])
        losses.append(torch.cat(parts).mean())
    return torch.stack(losses).mean() if losses else features.sum() * 0


def upper(unit: Tensor) -> Tensor:
    """The cosines of all pairs of unit vectors (n, features)."""
    i, j = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    return (unit @ unit.T)[i, j]


class Ramp:
    """Rises from 0 to 1 while the first epoch's images are seen."""

    def __init__(self, images: int) -> None:
        self.images, self.seen = images, 0

    def step(self, images: int, epoch: int) -> float:
        """How high it is, before so many images of an epoch, from 1."""
        now = 1.0 if epoch > 1 else min(self.seen / self.images, 1.0)
        self.seen += images
        return now


def begins(epochs: int) -> int:
    """The epoch, from 1, with which pseudo-labels begin."""
    return 1 + max(1, round(BEGIN * epochs))
