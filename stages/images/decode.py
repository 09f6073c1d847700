"""One policy for every image file: what it becomes, or why it cannot be used."""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.runtime.errors import UserError, reason

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)


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

    The EXIF orientation is applied; of an animation the first frame counts; transparency shows
    white; 16 bits a channel are scaled to 8. Raises `BadImage` with the status `unreadable`,
    `truncated` or `too_large` (more than `max_pixels`, checked before anything is decoded).
    """
    if not content:
        raise BadImage("unreadable", "the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # our own limit stands in for Pillow's bomb warning
            image = Image.open(io.BytesIO(content))
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise BadImage("too_large", f"{image.width} x {image.height} pixels")
            if enough is not None:
                image.draft(None, (enough, enough))
            image.load()
            return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise BadImage("unreadable", "no known image format") from None
    except Image.DecompressionBombError as error:
        raise BadImage("too_large", reason(error)) from None
    except MemoryError:
        raise BadImage("too_large", "does not fit into memory") from None
    except BadImage:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on a damaged file
        status = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise BadImage(status, reason(error)) from None


def inspect(path: Path, max_pixels: int) -> Inspection:
    """Read and decode a file once, for the index. Never raises for a bad file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Inspection(0, 0, "", "unreadable", reason(error))
    digest = hashlib.sha256(content).hexdigest()
    try:
        image = decode(content, max_pixels)
    except BadImage as bad:
        return Inspection(0, 0, digest, bad.status, str(bad))
    return Inspection(image.width, image.height, digest, "ok", "")


def read_image(path: str, sha256: str, enough: int | None = None) -> Image.Image:
    """An image that the index found usable, if it is still the one that was indexed.

    enough: as for `decode`. Raises `UserError` if the file is gone or has another content.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; it was there when the index was made") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} changed since the index was made: run `dvc repro index`")
    try:
        return decode(content, enough=enough)
    except BadImage as bad:
        raise UserError(f"{path}: {bad}; it could be read when the index was made") from None


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16L", "I;16B", "F"):  # Pillow's own conversion clips at 255
        values = np.asarray(image, np.float64)
        most = values.max(initial=0)
        top = 65535.0 if most > 255 else 1.0 if image.mode == "F" and most <= 1 else 255.0
        image = Image.fromarray(np.clip(values * (255 / top), 0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB")
