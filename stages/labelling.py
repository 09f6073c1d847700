"""From embeddings of views to labels: what the stages `bias` and `fuse_labels` have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from stages.method.debias import debias, label_floor, shows_a_class
from stages.method.independent import ClassScale, class_scale, independent_labels
from stages.method.similarity import PROBABILITIES, similarities
from stages.method.types import Booleans, Floats
from stages.params import Labels


class Labeller:
    """What CLIP says of views, and the labels that are made of it, as `labels` in params.yaml asks.

    text: the classes' embeddings; own_temperature: the teacher's. What is measured is set on it
    afterwards: centre, (classes,) what to subtract from the similarities; bias, (classes,) what to
    divide by; scale, of independent labels.
    """

    def __init__(self, settings: Labels, text: Any, own_temperature: float) -> None:
        self.settings, self.text = settings, text[...]
        learned = settings.temperature == "learned"
        self.temperature = own_temperature if learned else float(settings.temperature)
        self.centre: Floats | float = 0.0
        self.bias: Floats | None = None
        self.scale: ClassScale | None = None

    def probabilities(self, seen: Floats) -> Floats:
        """CLIP's own, raw, (views, classes) of embeddings (views, dim)."""
        return self._softmax(seen, 0.0)

    def scores(self, seen: Floats) -> Floats:
        """What labels are made of: centred probabilities, or, to be independent, similarities."""
        if self.settings.form == "independent":
            return self.similarities(seen)
        return self.centred(seen)

    def centred(self, seen: Floats) -> Floats:
        """Probabilities (views, classes) of centred similarities."""
        return self._softmax(seen, self.centre)

    def similarities(self, seen: Floats) -> Floats:
        """Cosines (views, classes)."""
        return similarities(seen, self.text)

    def shown(self, seen: Floats) -> Booleans:
        """(views,): whether a view shows any of the classes."""
        if self.settings.none_entropy >= 1:
            return np.ones(len(seen), bool)
        return shows_a_class(self.probabilities(seen), self.settings.none_entropy)

    def settle(self, scores: Iterable[Floats]) -> None:
        """Learn the scale of independent labels from all scores that they will be made of."""
        if self.settings.form == "independent":
            self.scale = class_scale(np.concatenate(list(scores)), self.settings.cut)

    def labels(self, scores: Floats) -> Floats:
        """Labels (images, classes) of `scores`; debiased ones are not clipped to 1 yet."""
        if self.scale is not None:
            return independent_labels(scores, self.scale, self.settings.slope)
        if self.bias is None:
            return scores
        return debias(scores, self.bias, label_floor(self.settings.floor, scores.shape[1]))

    def _softmax(self, seen: Floats, centre: Floats | float) -> Floats:
        return PROBABILITIES[self.settings.precision](seen, self.text, self.temperature, centre)
