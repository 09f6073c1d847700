"""The methods of the paper's Table 1: what each may know, and what it asks of the student.

A method is a source of labels, an objective, and whether the maps' positive activations are
multiplied before pooling (BoostLU). They share the pipeline's photographs, first weights,
optimiser, weak augmentation and number of epochs; the last epoch is what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments import objectives as o
from experiments.settings import Baseline
from stages.method.objective import Objective

# of the paper's data sets, in the table's order: VOC12, VOC07, COCO, NUS-WIDE
Published = tuple[float | None, float | None, float | None, float | None]
UNPUBLISHED: Published = (None, None, None, None)


class Simple(Objective):
    """A loss of the logits and of what is observed."""

    def __init__(self, observed: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(observed)
        self.of = of

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """As published, in `experiments.objectives`."""
        return self.of(logits, self.labels[rows])


class LargeLoss(Objective):
    """LL-R, LL-Ct or LL-Cp: large losses of assumed negatives are rejected, or corrected.

    share: of a batch's pairs, more by it every epoch. keep: a correction is for good (LL-Cp), and
    the share does not grow.
    """

    observed: Tensor

    def __init__(self, observed: Tensor, share: float, correct: bool, keep: bool = False) -> None:
        super().__init__(observed)
        self.share, self.correct, self.keep = share, correct, keep
        self.register_buffer("observed", observed.clone(), persistent=keep)

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """As published, in `experiments.objectives`."""
        observed = self.observed
        count = o.large_count(logits.numel(), epoch, self.share, growing=not self.keep)
        if not self.correct:
            return o.large_loss_rejection(logits, observed[rows], count)
        if self.keep:
            losses = o.cross_entropy(logits, o.present(observed[rows], logits))
            observed[rows] += o.large(losses, observed[rows], count).to(observed)
            count = 0
        return o.large_loss_correction(logits, observed[rows], count)


class Acknowledged(Objective):
    """EM + APL, approximately: of the unobserved labels, more are taken for absent every epoch.

    Those of the least predictions, each softly, as it was predicted then. When that begins and how
    many there are is as remembered: 90 % by the last of seven epochs, from the second on.
    """

    absent: Tensor

    def __init__(self, observed: Tensor, wait: int = 2, share: float = 0.18) -> None:
        super().__init__(observed)
        self.wait, self.share = wait, share
        self.register_buffer("absent", torch.full(observed.shape, torch.nan))

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """As published, in `experiments.objectives`."""
        return o.acknowledged(logits, self.labels[rows], self.absent[rows])

    def end_epoch(self, predicted: Tensor, epoch: int) -> None:
        """Take the next ones."""
        unknown = self.labels == 0
        free = (unknown & self.absent.isnan()).flatten()
        count = min(round(self.share * int(unknown.sum())), int(free.sum()))
        if epoch >= self.wait and count:
            least = predicted.flatten().where(free, torch.inf).topk(count, largest=False).indices
            self.absent.view(-1)[least] = predicted.flatten()[least].sigmoid()


class Role(Objective):
    """ROLE: the unobserved labels are estimated by a table that is learned with the student.

    Its logits begin at that of 0.995 for an observed positive, else uniform within those of 0.4 and
    0.6; of one observed in part, in between.
    """

    def __init__(self, observed: Tensor, expected: float, seed: int) -> None:
        super().__init__(observed)
        self.expected = expected
        rng = torch.Generator().manual_seed(seed)
        probability = 0.4 + 0.2 * torch.rand(observed.shape, generator=rng)
        probability += observed.clamp(min=0) * (0.995 - probability)
        self.table = nn.Parameter(torch.logit(probability))

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """As published, in `experiments.objectives`."""
        return o.role(logits, self.table[rows], self.labels[rows], self.expected)


class Game(Objective):
    """G2NetPL, approximately: the unobserved labels are a player of their own.

    They begin at the expected share of positives. How the network's trust in them grows over the
    epochs is not published: here from a half towards 1.
    """

    played: Tensor

    def __init__(self, observed: Tensor, expected: float) -> None:
        super().__init__(observed)
        prior = min(expected / observed.shape[1], 1.0)
        self.register_buffer("played", torch.full(observed.shape, prior))

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """As far as it is published, in `experiments.objectives`."""
        trust = epoch / (epoch + 1)
        return o.game(logits, self.played[rows], self.labels[rows], trust)

    def end_epoch(self, predicted: Tensor, epoch: int) -> None:
        """The labels' turn."""
        self.played = o.played_labels(self.played, predicted.sigmoid())


Build = Callable[[Tensor, Baseline, int], Objective]  # from what is observed, settings and seed


class Method(NamedTuple):
    """A row of the table. knows: all, some, one (positive) or clip.

    absent: what CLIP says is unlikely is taken for absent, since the loss is of known labels alone.
    told: the number of positives an image, where it is expected, is the true one.
    """

    title: str
    knows: str
    objective: Build
    published: Published = UNPUBLISHED
    boost: bool = False
    absent: bool = False
    told: bool = False


def _simple(of: Callable[[Tensor, Tensor], Tensor]) -> Build:
    return lambda observed, settings, seed: Simple(observed, of)


def _large(share: float, correct: bool, keep: bool = False) -> Build:
    return lambda observed, settings, seed: LargeLoss(observed, share, correct, keep)


def _full(logits: Tensor, observed: Tensor) -> Tensor:
    return o.of_known(o.cross_entropy(logits, o.present(observed, logits)), observed)


def _full_smooth(logits: Tensor, observed: Tensor) -> Tensor:
    targets = o.smoothed(o.present(observed, logits))
    return o.of_known(o.cross_entropy(logits, targets), observed)


def _negative(logits: Tensor, observed: Tensor) -> Tensor:
    return o.cross_entropy(logits, o.present(observed, logits)).mean()


def _smooth(logits: Tensor, observed: Tensor) -> Tensor:
    return o.cross_entropy(logits, o.smoothed(o.present(observed, logits))).mean()


def _role(observed: Tensor, settings: Baseline, seed: int) -> Objective:
    return Role(observed, settings.expected, seed)


def _game(observed: Tensor, settings: Baseline, seed: int) -> Objective:
    return Game(observed, settings.expected)


_SINGLE_POSITIVE = {
    "an": Method("Naive AN", "one", _simple(_negative)),
    "an_ls": Method("AN, smoothed", "one", _simple(_smooth)),
    "wan": Method("WAN", "one", _simple(o.weak_assume_negative)),
    "em": Method("EM", "one", _simple(o.entropy_maximisation)),
    "role": Method("ROLE", "one", _role),
    "ll_r": Method("LL-R", "one", _large(0.005, correct=False), (89.7, 90.6, 72.6, 47.4)),
    "ll_ct": Method("LL-Ct", "one", _large(0.002, correct=True)),
    "ll_cp": Method("LL-Cp", "one", _large(0.001, correct=True, keep=True)),
}
_ON_CLIPS_LABELS = {
    "clip_an": Method("Naive AN", "clip", _simple(_negative), (85.5, 86.5, 65.1, 40.8)),
    "clip_an_ls": Method("Szegedy et al.", "clip", _simple(_smooth), (86.8, 87.9, 65.5, 41.3)),
    "clip_wan": Method(
        "Aodha et al.", "clip", _simple(o.weak_assume_negative), (84.2, 86.2, 63.9, 40.1)
    ),
    "clip_partial": Method(
        "Durand et al.",
        "clip",
        _simple(o.partial_cross_entropy),
        (81.3, 83.1, 63.2, 39.4),
        absent=True,
    ),
    "clip_role": Method("ROLE", "clip", _role, (82.6, 84.6, 67.1, 43.2)),
}


def _boosted(methods: dict[str, Method]) -> dict[str, Method]:
    """The same with BoostLU."""
    return {
        f"{name}_boost": method._replace(
            title=f"{method.title} + BoostLU", published=UNPUBLISHED, boost=True
        )
        for name, method in methods.items()
    }


def _told(name: str, method: Method) -> dict[str, Method]:
    """The same, told how many positives an image has."""
    title = f"{method.title}, told the true rate"
    return {f"{name}_told": method._replace(title=title, published=UNPUBLISHED, told=True)}


_APL = Method(
    "EM + APL, approximate", "one", lambda observed, settings, seed: Acknowledged(observed)
)
_GAME = Method("G2NetPL, approximate", "one", _game, (89.5, 89.9, 72.5, 48.5))

METHODS: dict[str, Method] = {
    "bce": Method("BCE", "all", _simple(_full), (90.1, 91.3, 78.5, 50.7)),
    "bce_ls": Method("BCE-LS", "all", _simple(_full_smooth), (91.6, 92.6, 79.4, 51.7)),
    "asl": Method("ASL", "all", _simple(o.asymmetric)),
    "partial_bce": Method("partial BCE", "some", _simple(o.partial_cross_entropy)),
    "partial_asl": Method("ASL", "some", _simple(o.asymmetric), (None, 82.9, 69.7, None)),
    **_SINGLE_POSITIVE,
    **_boosted(_SINGLE_POSITIVE),
    **_told("role", _SINGLE_POSITIVE["role"]),
    "g2netpl": _GAME,
    **_told("g2netpl", _GAME),
    "em_apl": _APL,
    **_ON_CLIPS_LABELS,
    **_boosted(_ON_CLIPS_LABELS),
    **_told("clip_role", _ON_CLIPS_LABELS["clip_role"]),
}
