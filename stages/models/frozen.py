"""Students whose backbone is still its first weights: what they see was seen before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stages.models.backbones import BackboneConfig
from stages.models.student import StudentConfig
from stages.models.weights import load_weights
from stages.runtime.errors import UserError
from stages.runtime.types import Booleans, Floats
from stages.storage.arrays import Store, read_store
from stages.storage.provenance import parts_of


def first_features(
    features: Store,
    init: Path,
    weights: dict[str, Tensor],
    size: int,
    wanted: Booleans,
    index: str,
) -> Iterator[Floats] | None:
    """The pooled features (n, 2, dim) of the `wanted` of the index's rows, in parts.

    Of each image and of its mirror image, as a student of these `weights` sees them at its `size`.
    None unless `features` were computed, and its backbone is that of `init`, to the bit. index: the
    digest.
    """
    tensors, first = load_weights(init, BackboneConfig)
    prefix = "backbone." if first.classes is None else ""
    named = ((f"{prefix}{name}", value) for name, value in tensors.items())
    kept = (weights[name].equal(v) for name, v in named if name.startswith("backbone."))
    stored, of = read_store(features, index)
    if not len(wanted) or not stored["pooled"].shape[0] or not all(kept):
        return None
    if (of["student"], of["side"]) != (first.sha256, size):
        raise UserError(f"{features.path} is of another student: run `dvc repro`")
    return (stored["pooled"][part][wanted[part]] for part in parts_of(len(wanted)))


def scores_of_features(
    features: Store,
    init: Path,
    weights: dict[str, Tensor],
    config: StudentConfig,
    wanted: Booleans,
    index: str,
) -> Floats | None:
    """A student's probabilities (images, classes) of the `wanted` of the index's rows.

    None unless it is a plain head on the first weights' features; see `first_features`.
    """
    seen = first_features(features, init, weights, config.size, wanted, index)
    if seen is None or config.boost != 1:
        return None
    weight, bias = weights["head.weight"].flatten(1), weights["head.bias"]
    logits = [torch.from_numpy(both[:, 0]) @ weight.T + bias for both in seen]
    said: Floats = torch.cat(logits).sigmoid().numpy()
    return said
