"""One policy for every image file: what it becomes, or why it cannot be used."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from stages.runtime.errors import UserError, ours, reason

try:
    from pillow_heif import register_heif_opener
except ImportError:
    HEIC: frozenset[str] = frozenset()
else:
    register_heif_opener(thumbnails=False)
    HEIC = frozenset({".heic", ".heif"})

SUFFIXES = HEIC | {
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif",
}  # fmt: skip
# no other decoder is started, whatever a file's name: that of EPS would run a program
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *(["HEIF"] if HEIC else []))
MOST_BYTES = 1 << 30  # of a file
AT_ONCE = 100_000_000  # pixels that the threads of a process decode at a time, for its memory
STRIP = 1 << 20  # pixels whose depth is reduced at a time

ORIENTATION = 0x0112  # EXIF's tag; its values, and what turns the image upright
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

PNG = b"\x89PNG\r\n\x1a\n"
PNG_WORDS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")  # chunks that nobody needs here

Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit
_room, _taken = threading.Condition(), [0]


class BadImage(Exception):
    """An image that cannot be used: `status` for the index, and the reason."""

    def __init__(self, status: str, why: str) -> None:
        super().__init__(why)
        self.status = status


class Inspection(NamedTuple):
    """What the index says of an image."""

    width: int
    height: int
    sha256: str
    status: str
    error: str


def decode(content: bytes, max_pixels: int | None = None, enough: int | None = None) -> Image.Image:
    """The upright RGB image in `content`, decoded whole.

    enough: pixels a side that will do; a large JPEG is then decoded at a half, a quarter or an
    eighth of its size, as far as no side gets smaller, which is several times faster.

    The orientation is applied (of a PNG that of its eXIf chunk), and nothing else of the metadata
    is looked at; of an animation the first frame counts; transparency shows white; 16 bits a
    channel are scaled to 8. Raises `BadImage` with the status `unreadable`, `truncated` or
    `too_large` (more than `max_pixels`, checked before anything is decoded). docs/reliability.md
    says how much memory it takes.
    """
    with _as_bad_image():
        image = _opened(content, max_pixels)
        if enough is not None:
            image.draft(None, (enough, enough))
        image.load()
        return _rgb(_upright(image))


def decode_in_turn(
    content: bytes, max_pixels: int | None = None, enough: int | None = None
) -> Image.Image:
    """As `decode`, for threads: of so many pixels at once, and what is more waits for its turn."""
    with _as_bad_image():
        width, height = _opened(content, max_pixels).size
    with _pixels(width * height):
        return decode(content, max_pixels, enough)


def inspect(path: Path, max_pixels: int) -> Inspection:
    """Read and decode a file once, for the index. Never raises for a bad file."""
    digest = ""
    try:
        content = read_regular(path)
        digest = hashlib.sha256(content).hexdigest()
        width, height = decode_in_turn(content, max_pixels).size
    except BadImage as bad:
        return Inspection(0, 0, digest, bad.status, str(bad))
    except OSError as error:
        return Inspection(0, 0, "", "unreadable", reason(error))
    return Inspection(width, height, digest, "ok", "")


def read_image(path: str, sha256: str, enough: int | None = None) -> Image.Image:
    """An image that the index found usable, if it is still the one that was indexed.

    enough: as for `decode`. Raises `UserError` if the file is gone or has another content.
    """
    try:
        content = read_regular(Path(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; it was there when the index was made") from None
    except BadImage as bad:
        raise UserError(f"{path}: {bad}, since the index was made: run `dvc repro index`") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} changed since the index was made: run `dvc repro index`")
    try:
        return decode(content, enough=enough)
    except BadImage as bad:
        raise UserError(f"{path}: {bad}; it could be read when the index was made") from None


def read_regular(path: Path) -> bytes:
    """The content of a file; raises `OSError`, or `BadImage` for a pipe, a device, or too much."""
    # opened first and looked at then, so that nothing can take its place; a pipe does not block
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BadImage("unreadable", "no regular file")
        if status.st_size > MOST_BYTES:
            raise BadImage("too_large", f"{status.st_size} bytes")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(status.st_size)
    finally:
        os.close(descriptor)


@contextmanager
def _pixels(count: int) -> Iterator[None]:
    """Wait until there is room for an image of so many; one that is larger has it all to itself."""
    with _room:
        _room.wait_for(lambda: _taken[0] == 0 or _taken[0] + count <= AT_ONCE)
        _taken[0] += count
    try:
        yield
    finally:
        with _room:
            _taken[0] -= count
            _room.notify_all()


@contextmanager
def _as_bad_image() -> Iterator[None]:
    """Whatever a decoder says of a bad file, as `BadImage`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, mostly
            yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("unreadable", "no known image format") from None
    except MemoryError:
        raise BadImage("too_large", "does not fit into memory") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        if ours(error):
            raise
        status = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise BadImage(status, reason(error)) from None


def _opened(content: bytes, max_pixels: int | None) -> Image.Image:
    """The image in `content`, of which only the size is known so far."""
    if not content:
        raise BadImage("unreadable", "the file is empty")
    image = Image.open(io.BytesIO(_without_words(content)), formats=FORMATS)
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise BadImage("too_large", f"{image.width} x {image.height} pixels")
    return image


def _without_words(content: bytes) -> bytes:
    """A PNG without texts and profiles, for which Pillow would refuse it; others as they are."""
    if not content.startswith(PNG):
        return content
    kept, start, place = [], 0, len(PNG)
    while place < len(content):
        end = place + 12 + int.from_bytes(content[place : place + 4])
        if content[place + 4 : place + 8] in PNG_WORDS:
            kept.append(content[start:place])
            start = end
        place = end
    return b"".join([*kept, content[start:]]) if kept else content


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception as error:  # broken metadata raise nearly anything, and leave the pixels
        if ours(error):
            raise
        return image
    return image if turned is None else image.transpose(turned)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "F"):  # Pillow's own conversion clips at 255
        image = _eight_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.new("RGBA", layer.size, "white")
        image.alpha_composite(layer)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    most = values.max(initial=0)
    top = 65535.0 if most > 255 else 1.0 if image.mode == "F" and most <= 1 else 255.0
    reduced = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // max(1, values.shape[1]))
    for start in range(0, len(values), rows):
        strip = np.nan_to_num(values[start : start + rows].astype(np.float64))
        reduced[start : start + rows] = np.clip(strip * (255 / top), 0, 255)
    return Image.fromarray(reduced)
