"""One policy for every image file, however odd."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.images.crops import CropRule, crop, crop_size, squash
from stages.images.decode import BadImage, decode, inspect, read_image
from stages.images.normalise import normalise
from stages.runtime.errors import UserError
from stages.training.augment import strong, weak


def saved(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def status_of(content: bytes, max_pixels: int = 10**6) -> str:
    with pytest.raises(BadImage) as caught:
        decode(content, max_pixels)
    return caught.value.status


def test_an_exif_rotated_image_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    corner = Image.new("RGB", (40, 32), "white")
    corner.paste((255, 0, 0), (0, 0, 16, 16))  # top left before the turn, top right after
    image = decode(saved(corner, "JPEG", exif=exif, quality=95))
    assert image.size == (32, 40)
    assert np.asarray(image)[4, 28].tolist() == pytest.approx([255, 0, 0], abs=6)
    assert np.asarray(image)[4, 4].tolist() == pytest.approx([255, 255, 255], abs=6)


def test_a_photograph_of_a_phone_is_decoded_upright_and_a_cut_one_is_no_crash(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    corner = Image.new("RGB", (64, 48), "white")
    corner.paste((255, 0, 0), (0, 0, 24, 24))
    content = saved(corner, "HEIF", quality=95, exif=exif.tobytes())
    (tmp_path / "IMG_1.HEIC").write_bytes(content)
    found = inspect(tmp_path / "IMG_1.HEIC", 10**6)
    assert (found.width, found.height, found.status) == (48, 64, "ok")
    image = decode(content)
    red, green, blue = image.getpixel((42, 6))
    assert red > 230 > 40 > max(green, blue)
    assert min(image.getpixel((6, 6))) > 230
    assert status_of(content, 1000) == "too_large"
    assert status_of(content[: len(content) // 2]) in ("truncated", "unreadable")


def test_without_its_library_a_photograph_of_a_phone_is_counted_with_what_to_install(
    tmp_path: Path,
):
    (tmp_path / "a.jpg").write_bytes(saved(noise(), "JPEG"))
    (tmp_path / "b.HEIC").write_bytes(saved(noise(), "HEIF"))
    code = (
        "import sys; sys.modules['pillow_heif'] = None\n"
        "from stages.sources.folder import in_words, photographs\n"
        "found, others = photographs(sys.argv[1], '')\n"
        "print(len(found), in_words(others))\n"
        "from stages.command.predict import remedy_for\n"
        "print([remedy_for(photo) for photo in [*found, found[0]._replace(path='x/IMG.HEIC')]])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    remedy = " (`pip install pillow-heif` lets them be read)"
    assert said == f"1 1 .heic{remedy}\n{['', remedy]}\n"


def test_a_cmyk_image_keeps_its_colours():
    red = Image.new("RGB", (8, 8), (250, 10, 10)).convert("CMYK")
    assert np.asarray(decode(saved(red, "JPEG", quality=95)))[4, 4].tolist() == pytest.approx(
        [250, 10, 10], abs=8
    )


@pytest.mark.parametrize(("kind", "form"), [(np.uint16, "PNG"), (np.int32, "TIFF")])
def test_a_16_bit_grey_image_is_scaled_and_not_clipped(kind: type, form: str):
    ramp = np.linspace(0, 65535, 64).astype(kind).reshape(1, -1).repeat(4, axis=0)
    row = np.asarray(decode(saved(Image.fromarray(ramp), form)))[0, :, 0]
    assert row[0] == 0
    assert row[-1] == 255
    assert row[32] == pytest.approx(129, abs=2)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_shows_white(mode: str):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (4, 4), 0)
        image.info["transparency"] = 0
        content = saved(image, transparency=0)
    else:
        content = saved(image.convert(mode))
    assert np.asarray(decode(content))[0, 0].tolist() == [255, 255, 255]


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(content))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "I", "F", "LAB", "P", "RGBA", "LA"])
def test_every_mode_that_a_file_can_have_becomes_rgb(mode: str):
    image = noise().convert("L").convert(mode) if mode in ("I", "F") else None
    if mode == "LAB":
        image = Image.merge("LAB", noise().split())
    content = saved(image or noise().convert(mode), "TIFF")
    assert Image.open(io.BytesIO(content)).mode == mode
    assert decode(content).mode == "RGB"


def test_a_float_image_from_0_to_1_is_not_black():
    ramp = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, -1)
    row = np.asarray(decode(saved(Image.fromarray(ramp), "TIFF")))[0, :, 0]
    assert row[-1] == 255


def test_a_truncated_image_is_called_truncated():
    content = saved(noise(200, 200), "JPEG")
    assert status_of(content[: len(content) // 2]) == "truncated"


def test_an_empty_file_and_a_text_are_unreadable():
    assert status_of(b"") == "unreadable"
    assert status_of(b"no image at all\n") == "unreadable"


def test_a_damaged_image_is_unreadable_and_no_crash():
    content = bytearray(saved(noise(64, 64)))
    content[40:60] = b"\x00" * 20
    assert status_of(bytes(content)) in ("unreadable", "truncated")


def test_an_enormous_image_is_too_large_before_anything_is_decoded():
    black = saved(Image.new("1", (20000, 20000)))
    assert len(black) < 100_000
    assert status_of(black, 10**8) == "too_large"


def test_the_limit_of_pixels_is_ours_and_not_pillows():
    assert status_of(saved(Image.new("1", (11000, 11000))), 10**8) == "too_large"
    assert decode(saved(Image.new("1", (1000, 1000))), 10**6).size == (1000, 1000)


def test_a_limit_above_pillows_own_counts():
    assert decode(saved(Image.new("1", (20000, 10000))), 200_000_000).size == (20000, 10000)


def test_inspection_never_raises(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    assert inspect(tmp_path / "folder.jpg", 100).status == "unreadable"
    assert inspect(tmp_path / "gone.jpg", 100).status == "unreadable"


def test_an_image_that_changed_or_vanished_since_the_index_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(saved(noise()))
    digest = inspect(path, 10**6).sha256
    assert read_image(str(path), digest).size == (40, 30)
    path.write_bytes(saved(noise(41, 30)))
    with pytest.raises(UserError, match="changed since the index"):
        read_image(str(path), digest)
    path.unlink()
    with pytest.raises(UserError, match="it was there when the index was made"):
        read_image(str(path), digest)


def test_a_view_is_cut_before_it_is_resized():
    image = Image.new("RGB", (100, 50), "white")
    image.paste((255, 0, 0), (20, 10, 40, 30))
    cut = crop(image, (20, 10, 40, 30), (64, 64))
    assert cut.shape == (3, 64, 64)
    assert cut.permute(1, 2, 0).reshape(-1, 3).unique(dim=0).tolist() == [[255, 0, 0]]
    assert squash(image, 32).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 100, 100), (640, 640)),
        ((0, 0, 100, 50), (640, 320)),
        ((0, 0, 50, 100), (320, 640)),
        ((0, 0, 300, 1), (640, 32)),
        ((10, 10, 11, 11), (640, 640)),
    ],
)
def test_a_local_views_longer_side_is_given_and_its_aspect_kept(box, size):
    assert crop_size(box, CropRule(640), 32) == size


def test_weak_views_are_mirrored_or_not_and_strong_ones_change_colour_too():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    seen = weak(images)
    kept = [bool((seen[i] == images[i]).all()) for i in range(16)]
    assert any(kept)
    assert not all(kept)
    assert all(k or bool((seen[i] == images[i].flip(-1)).all()) for i, k in enumerate(kept))
    jittered = strong(images, (0.5, 0.5, 0.5, 0.5))
    assert all(not (jittered[i] == images[i]).all() for i in range(16))
    assert jittered.dtype == torch.uint8


def test_normalising_centres_by_channel():
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    values = normalise(images, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0))
    assert values[0, :, 0, 0].tolist() == [1.0, 3.0, 0.5]
