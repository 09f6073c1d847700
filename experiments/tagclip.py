"""TagCLIP (AAAI 2024): words for what is no class, the best patch, and a second look around it.

Its weighing of patches by the attention of a transformer's late layers is left out: the teachers at
hand have none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.method.views import Box

# of its list for VOC; what is one of the user's own classes is left out
BACKGROUND = [
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river"),
    *("sea", "railway", "railroad", "keyboard", "helmet", "cloud", "house", "mountain", "ocean"),
    *("road", "rock", "street", "valley", "bridge", "sign"),
]
ALIKE = 0.9  # a word whose embedding is that near to a class's is left out too


def background_of(classes: list[str], texts: Tensor, words: list[str], of_words: Tensor) -> Tensor:
    """The embeddings of the words that name no class: not by name, in plural, nor in meaning.

    texts (classes, dim), of_words (words, dim): unit embeddings.
    """
    named = {word for name in classes for word in name.lower().replace(",", " ").split()}
    named |= {f"{word}s" for word in named} | {word.removesuffix("s") for word in named}
    apart = (of_words @ texts.T).amax(dim=1) < ALIKE
    kept = [place for place, word in enumerate(words) if word not in named and apart[place]]
    return of_words[kept]


def probabilities(seen: Tensor, texts: Tensor, background: Tensor, temperature: float) -> Tensor:
    """Of the classes (…, classes), of embeddings (…, dim): a softmax over them and the words."""
    p = (seen @ torch.cat([texts, background]).T / temperature).softmax(dim=-1)
    return p[..., : len(texts)]


def second_looks(p: Tensor) -> list[tuple[int, Box]]:
    """Which classes of an image are looked at again, and where.

    p: (rows, columns, classes) of one image's patches. A class whose best patch is above the middle
    of the classes' best and worst is; its box, in shares of the sides, is around the patches where
    its own map, scaled to 0 … 1, is above a half.
    """
    rows, columns, classes = p.shape
    best = p.amax(dim=(0, 1))
    middle = best.min() + 0.5 * (best.max() - best.min())
    found = []
    for c in range(classes):
        if best[c] <= middle:
            continue
        least = p[..., c].min()
        inside = (p[..., c] - least) > 0.5 * (best[c] - least)
        y, x = (torch.nonzero(inside.any(dim=1 - axis)).flatten().tolist() for axis in (0, 1))
        if y:
            box = (x[0] / columns, y[0] / rows, (x[-1] + 1) / columns, (y[-1] + 1) / rows)
            found.append((c, box))
    return found
