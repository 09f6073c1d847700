"""The demo world's pencil: shapes, objects and backgrounds drawn with Pillow.

Everything here is a pure function of its arguments and of the generator it is given, so an
image depends on its own seed alone and not on the order or the process it is drawn in.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIDE = 128
MASK = 96  # shapes are drawn at this side, then rotated and resized
CLASSES = (
    "star", "heart", "moon", "arrow", "tree", "house",
    "fish", "flower", "cup", "key", "bolt", "umbrella",
)  # fmt: skip
POLYSEMOUS = ("hexagon", "square", "circle")  # on the web they go by a class's name
PLAIN = ("cross", "wave", "ring")
SHAPES = CLASSES + POLYSEMOUS + PLAIN

Pen = ImageDraw.ImageDraw
Point = tuple[float, float]
Box = tuple[int, int, int, int]


def _ring(
    n: int, radius: float, turn: float = -pi / 2, x: float = 48, y: float = 48
) -> list[Point]:
    """`n` points on a circle."""
    angles = (turn + 2 * pi * i / n for i in range(n))
    return [(x + radius * cos(a), y + radius * sin(a)) for a in angles]


def _star(body: Pen, detail: Pen) -> None:
    outer, inner = _ring(5, 44), _ring(5, 18, -pi / 2 + pi / 5)
    body.polygon([p for pair in zip(outer, inner, strict=True) for p in pair], fill=255)
    detail.polygon(_ring(5, 9), fill=255)


def _heart(body: Pen, detail: Pen) -> None:
    body.ellipse((6, 12, 52, 56), fill=255)
    body.ellipse((44, 12, 90, 56), fill=255)
    body.polygon([(9, 44), (87, 44), (48, 90)], fill=255)
    detail.ellipse((18, 22, 32, 36), fill=255)


def _moon(body: Pen, detail: Pen) -> None:
    body.ellipse((8, 6, 88, 90), fill=255)
    body.ellipse((34, 0, 106, 80), fill=0)
    detail.ellipse((16, 52, 28, 64), fill=255)


def _arrow(body: Pen, detail: Pen) -> None:
    body.polygon([(4, 38), (52, 38), (52, 16), (92, 48), (52, 80), (52, 58), (4, 58)], fill=255)
    detail.rectangle((8, 44, 48, 52), fill=255)


def _tree(body: Pen, detail: Pen) -> None:
    for top, half in ((4, 22), (24, 30), (44, 38)):
        body.polygon([(48, top), (48 - half, top + 32), (48 + half, top + 32)], fill=255)
    body.rectangle((40, 74, 56, 94), fill=255)
    detail.rectangle((40, 76, 56, 94), fill=255)


def _house(body: Pen, detail: Pen) -> None:
    body.polygon([(48, 4), (4, 44), (92, 44)], fill=255)
    body.rectangle((14, 42, 82, 92), fill=255)
    detail.rectangle((40, 62, 56, 92), fill=255)
    detail.rectangle((22, 52, 34, 64), fill=255)
    detail.rectangle((62, 52, 74, 64), fill=255)


def _fish(body: Pen, detail: Pen) -> None:
    body.ellipse((4, 24, 70, 72), fill=255)
    body.polygon([(58, 48), (92, 20), (92, 76)], fill=255)
    detail.ellipse((16, 38, 26, 48), fill=255)
    detail.arc((24, 28, 48, 68), -70, 70, fill=255, width=4)


def _flower(body: Pen, detail: Pen) -> None:
    for x, y in _ring(6, 27):
        body.ellipse((x - 18, y - 18, x + 18, y + 18), fill=255)
    body.ellipse((30, 30, 66, 66), fill=255)
    detail.ellipse((35, 35, 61, 61), fill=255)


def _cup(body: Pen, detail: Pen) -> None:
    body.polygon([(10, 18), (66, 18), (58, 88), (18, 88)], fill=255)
    body.arc((50, 28, 92, 70), -110, 110, fill=255, width=9)
    detail.ellipse((12, 13, 64, 25), fill=255)


def _key(body: Pen, detail: Pen) -> None:
    body.ellipse((2, 28, 42, 68), fill=255)
    body.ellipse((14, 40, 30, 56), fill=0)
    body.rectangle((38, 43, 94, 53), fill=255)
    body.rectangle((68, 50, 76, 68), fill=255)
    body.rectangle((82, 50, 90, 64), fill=255)
    detail.rectangle((46, 46, 88, 49), fill=255)


def _bolt(body: Pen, detail: Pen) -> None:
    body.polygon([(54, 2), (14, 54), (42, 54), (32, 94), (80, 36), (50, 36), (70, 2)], fill=255)
    detail.polygon([(52, 12), (34, 42), (44, 44), (58, 12)], fill=255)


def _umbrella(body: Pen, detail: Pen) -> None:
    body.pieslice((4, 8, 92, 96), 180, 360, fill=255)
    for x in (4, 33, 63):
        body.ellipse((x, 44, x + 30, 62), fill=0)
    body.rectangle((45, 46, 51, 84), fill=255)
    body.arc((45, 74, 65, 94), 0, 180, fill=255, width=6)
    detail.line([(48, 10), (34, 50)], fill=255, width=4)
    detail.line([(48, 10), (62, 50)], fill=255, width=4)


def _hexagon(body: Pen, detail: Pen) -> None:
    body.polygon(_ring(6, 44), fill=255)
    detail.ellipse((32, 32, 64, 64), fill=255)


def _square(body: Pen, detail: Pen) -> None:
    body.rectangle((12, 12, 84, 84), fill=255)
    detail.rectangle((32, 32, 64, 64), fill=255)


def _circle(body: Pen, detail: Pen) -> None:
    body.ellipse((6, 6, 90, 90), fill=255)
    detail.ellipse((26, 24, 44, 42), fill=255)


def _cross(body: Pen, detail: Pen) -> None:
    body.rectangle((36, 4, 60, 92), fill=255)
    body.rectangle((4, 36, 92, 60), fill=255)
    detail.rectangle((42, 42, 54, 54), fill=255)


def _wave(body: Pen, detail: Pen) -> None:
    crest = [(x, 38 + 18 * sin(x / 92 * 3 * pi)) for x in range(4, 93, 2)]
    body.polygon(crest + [(x, y + 22) for x, y in reversed(crest)], fill=255)
    detail.line([(x, y + 10) for x, y in crest], fill=255, width=4)


def _annulus(body: Pen, detail: Pen) -> None:
    body.ellipse((6, 6, 90, 90), fill=255)
    body.ellipse((30, 30, 66, 66), fill=0)
    detail.arc((14, 14, 82, 82), 200, 300, fill=255, width=6)


_DRAW: dict[str, Callable[[Pen, Pen], None]] = {
    "star": _star, "heart": _heart, "moon": _moon, "arrow": _arrow, "tree": _tree,
    "house": _house, "fish": _fish, "flower": _flower, "cup": _cup, "key": _key,
    "bolt": _bolt, "umbrella": _umbrella, "hexagon": _hexagon, "square": _square,
    "circle": _circle, "cross": _cross, "wave": _wave, "ring": _annulus,
}  # fmt: skip


def masks(shape: str) -> tuple[Image.Image, Image.Image]:
    """The silhouette of `shape` and the detail drawn on it, two `L` images of side `MASK`."""
    body, detail = Image.new("L", (MASK, MASK)), Image.new("L", (MASK, MASK))
    _DRAW[shape](ImageDraw.Draw(body), ImageDraw.Draw(detail))
    return body, ImageChops.multiply(body, detail)


_MASKS = {shape: masks(shape) for shape in SHAPES}


def _colour(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * r), round(255 * g), round(255 * b)


def _paint(rng: np.random.Generator, colour: tuple[int, int, int]) -> Image.Image:
    """The texture of an object's body: plain, striped or shaded."""
    base = np.broadcast_to(np.array(colour, np.float32), (MASK, MASK, 3)).copy()
    ramp = np.linspace(0, 1, MASK, dtype=np.float32)
    kind = rng.random()
    if kind < 0.35:
        period, phase = rng.uniform(8, 20), rng.uniform(0, 20)
        dark = ((np.arange(MASK) + phase) % period < period / 2).astype(np.float32)
        base *= (1 - 0.4 * dark)[None, :, None]
    elif kind < 0.70:
        base *= (1 - 0.5 * ramp)[:, None, None]
    return Image.fromarray(base.astype(np.uint8))


def draw_object(
    canvas: Image.Image, shape: str, side: float, centre: Point, rng: np.random.Generator
) -> Box:
    """Paste one `shape` of `side` pixels at `centre` (pixels) on `canvas`, in place.

    Returns the box around it in whole pixels: x0, y0, x1, y1, the last two not inside. Half the
    objects take their class's own hue, the others any: colour tempts, and misleads.
    """
    own = (SHAPES.index(shape) * 0.61803399) % 1.0
    hue = rng.normal(own, 0.06) if rng.random() < 0.5 else rng.random()
    colour = _colour(hue, rng.uniform(0.6, 1.0), rng.uniform(0.65, 1.0))
    texture = _paint(rng, colour)
    body, detail = _MASKS[shape]
    texture.paste(_colour(hue + 0.5, 0.5, rng.uniform(0.2, 1.0)), mask=detail)
    alpha = body
    if rng.random() < 0.8:
        alpha = body.filter(ImageFilter.MaxFilter(7))
        outlined = Image.new("RGB", (MASK, MASK), _colour(hue, 0.6, 0.15))
        outlined.paste(texture, mask=body)
        texture = outlined
    turn, mirrored = rng.uniform(-25, 25), rng.random() < 0.5
    aspect = rng.uniform(0.85, 1.18)
    size = (max(4, round(side * aspect**0.5)), max(4, round(side / aspect**0.5)))
    if mirrored:
        texture, alpha = (i.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for i in (texture, alpha))
    texture = texture.rotate(turn, Image.Resampling.BILINEAR).resize(size)
    alpha = alpha.rotate(turn, Image.Resampling.BILINEAR).resize(size)
    corner = (round(centre[0] - size[0] / 2), round(centre[1] - size[1] / 2))
    canvas.paste(texture, corner, alpha)
    x0, y0, x1, y1 = alpha.getbbox() or (0, 0, *size)
    x, y = corner
    return max(x + x0, 0), max(y + y0, 0), min(x + x1, SIDE), min(y + y1, SIDE)


def draw_background(rng: np.random.Generator) -> Image.Image:
    """A muted gradient with slow colour noise and, at times, stripes: `SIDE` x `SIDE` RGB."""
    ends = [
        np.array(_colour(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.3, 0.9)), np.float32)
        for _ in range(2)
    ]
    angle = rng.uniform(0, 2 * pi)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE - 0.5
    t = np.clip(0.5 + x * cos(angle) + y * sin(angle), 0, 1)[..., None]
    picture = ends[0] * (1 - t) + ends[1] * t
    slow = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    slow = slow.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    picture += (np.asarray(slow, np.float32) / 127.5 - 1) * rng.uniform(0, 20)
    if rng.random() < 0.35:
        turn, waves = rng.uniform(0, 2 * pi), rng.uniform(3, 12)
        stripes = np.sin(2 * pi * waves * (x * cos(turn) + y * sin(turn)))
        picture += rng.uniform(4, 16) * stripes[..., None]
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))


def finish(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What a camera adds: a light blur in half of the images, and pixel noise."""
    if rng.random() < 0.5:
        canvas = canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.8)))
    pixels = np.asarray(canvas, np.float64)
    pixels = pixels + rng.normal(0, rng.uniform(2, 14), pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
