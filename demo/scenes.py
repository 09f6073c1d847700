"""What is put together in the demo world: the user's photographs, and the web's captioned ones."""

from __future__ import annotations

import numpy as np
from PIL import Image

from demo.shapes import (
    CLASSES,
    PLAIN,
    POLYSEMOUS,
    SHAPES,
    SIDE,
    Box,
    draw_background,
    draw_object,
    finish,
)

# What the web calls things, and how often: the source of the teacher's class-wise bias.
POLYSEMY = {"hexagon": "bolt", "square": "key", "circle": "cup"}
POLYSEMY_RATE = 0.9
SYNONYMS = {"cup": (("mug",), 0.6), "tree": (("pine", "fir"), 0.7)}

TEMPLATES = (
    "a photo of the {}", "a photo of a {}", "a picture of the {}", "a {}", "the {}",
    "a drawing of a {}", "an image of the {}", "my {}", "look at this {}",
)  # fmt: skip
FILLERS = ("nice", "small", "big", "old", "new", "lovely", "red", "blue", "green", "dark")
EMPTY = ("wall", "sky", "floor")


def draw_photo(
    rng: np.random.Generator, lenders: bool = False
) -> tuple[Image.Image, list[tuple[str, Box]]]:
    """One unlabelled photograph: the image, and the class and box of every object on it.

    One to five objects, the first one salient; up to three shapes that are no class at all, with
    `lenders` also such as go by a class's name on the web.
    """
    no_class = (*PLAIN, *POLYSEMOUS) if lenders else PLAIN
    canvas = draw_background(rng)
    frequency = 1 / (1 + 0.06 * np.arange(len(CLASSES)))
    count = rng.choice([1, 2, 3, 4, 5], p=[0.15, 0.30, 0.27, 0.18, 0.10])
    first = int(rng.choice(len(CLASSES), p=frequency / frequency.sum()))
    chosen = [first]
    for _ in range(count - 1):
        if rng.random() < 0.3:  # things that are seen together
            chosen.append(int(rng.choice([c for c in range(len(CLASSES)) if c % 4 == first % 4])))
        else:
            chosen.append(int(rng.choice(len(CLASSES), p=frequency / frequency.sum())))
    sides = [rng.uniform(0.34, 0.56)] + [rng.uniform(0.20, 0.36) for _ in chosen[1:]]
    things = [(CLASSES[c], s) for c, s in zip(chosen, sides, strict=True)]
    clutter = [
        (str(rng.choice(no_class)), rng.uniform(0.12, 0.28)) for _ in range(rng.integers(0, 4))
    ]
    taken: list[tuple[float, float, float]] = []
    objects = []
    for shape, side in sorted(things + clutter, key=lambda thing: -thing[1]):
        x, y = _free_place(side, taken, rng)
        taken.append((x, y, side))
        box = draw_object(canvas, shape, side * SIDE, (x * SIDE, y * SIDE), rng)
        if shape in CLASSES:
            objects.append((shape, box))
    return finish(canvas, rng), objects


def _free_place(
    side: float, taken: list[tuple[float, float, float]], rng: np.random.Generator
) -> tuple[float, float]:
    """Of a few random places inside the image, the one that overlaps the others least."""
    places = rng.uniform(side / 2, 1 - side / 2, (12, 2))

    def overlap(place: np.ndarray) -> float:
        reach = [
            (side + other) / 2 - max(abs(place[0] - x), abs(place[1] - y)) for x, y, other in taken
        ]
        return max(0.0, *reach) if reach else 0.0

    best = min(places, key=overlap)
    return float(best[0]), float(best[1])


def draw_web_pair(rng: np.random.Generator) -> tuple[Image.Image, str]:
    """One image of the web with its caption: one main thing, named; the rest is mostly not."""
    canvas = draw_background(rng)
    if rng.random() < 0.05:
        return finish(canvas, rng), _caption([str(rng.choice(EMPTY))], rng)
    main = _web_shape(rng)
    things = [(main, rng.uniform(0.35, 1.0), rng.normal(0.5, 0.13, 2))]
    others = rng.choice(4, p=[0.35, 0.35, 0.2, 0.1])
    things += [
        (_web_shape(rng), rng.uniform(0.15, 0.30), rng.uniform(0.1, 0.9, 2)) for _ in range(others)
    ]
    named = [_web_name(main, rng)]
    for shape, side, (x, y) in reversed(things[1:]):
        draw_object(canvas, shape, side * SIDE, (x * SIDE, y * SIDE), rng)
        if rng.random() < 0.15:
            named.append(_web_name(shape, rng))
    shape, side, (x, y) = things[0]
    draw_object(canvas, shape, side * SIDE, (x * SIDE, y * SIDE), rng)
    if rng.random() < 0.02:
        named = [_web_name(_web_shape(rng), rng)]
    return finish(canvas, rng), _caption(named, rng)


def _web_shape(rng: np.random.Generator) -> str:
    weights = np.array([1.5 if shape in POLYSEMOUS else 1.0 for shape in SHAPES])
    return str(rng.choice(SHAPES, p=weights / weights.sum()))


def _web_name(shape: str, rng: np.random.Generator) -> str:
    if shape in POLYSEMY and rng.random() < POLYSEMY_RATE:
        return POLYSEMY[shape]
    others, rate = SYNONYMS.get(shape, ((), 0.0))
    return str(rng.choice(others)) if rng.random() < rate else shape


def _caption(names: list[str], rng: np.random.Generator) -> str:
    words = [f"{rng.choice(FILLERS)} {name}" if rng.random() < 0.3 else name for name in names]
    return str(rng.choice(TEMPLATES)).format(" and a ".join(words))
