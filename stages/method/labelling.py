"""From embeddings of views to labels, as `labels` in params.yaml asks: both steps of `bias` and
`fuse_labels`, of which the formulas stand in the files beside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.method.debias import debias, label_floor
from stages.method.similarity import PROBABILITIES, similarities
from stages.runtime.params import Labels
from stages.runtime.types import Floats


@dataclass(frozen=True)
class Zeroshot:
    """What the teacher says of views, given the classes' embeddings `text` (classes, dim).

    temperature: of the softmax; centre: what to subtract from a class's similarities before it.
    """

    settings: Labels
    text: Floats
    temperature: float

    def probabilities(self, seen: Floats, centre: Floats | float = 0.0) -> Floats:
        """(views, classes), of embeddings (views, dim) (Eq. 1-3)."""
        return PROBABILITIES[self.settings.precision](seen, self.text, self.temperature, centre)

    def similarities(self, seen: Floats) -> Floats:
        """Cosines (views, classes)."""
        return similarities(seen, self.text)


def zeroshot(settings: Labels, text: Floats, learned: float) -> Zeroshot:
    """With the temperature that is set, or the teacher's own, `learned`."""
    own = settings.temperature == "learned"
    return Zeroshot(settings, text, learned if own else float(settings.temperature))


def labels_of(p: Floats, settings: Labels, bias: Floats | None) -> Floats:
    """Labels (images, classes) of probabilities: raised to the floor, and divided by the bias.

    bias: (classes,), or None where it is not divided out. Quotients are not clipped to 1 yet.
    """
    divisor = np.ones(p.shape[1], np.float32) if bias is None else bias
    return debias(p, divisor, label_floor(settings.floor, p.shape[1]))
