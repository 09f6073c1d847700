"""Forty kinds of files that stand where photographs are expected."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stages.images.decode import FORMATS, BadImage, decode, inspect
from stages.runtime.code import ROOT
from stages.sources.folder import in_words, photographs
from tests.conftest import Project
from tests.faults.conftest import refusal


def picture(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Left half dark, right half bright."""
    image = Image.new("RGB", size, "black")
    image.paste("white", (size[0] // 2, 0, *size))
    return image.convert(mode)


def saved(form: str, image: Image.Image | None = None, **options) -> bytes:
    content = io.BytesIO()
    (image or picture()).save(content, form, **options)
    return content.getvalue()


def rational(numerator: int, denominator: int, orientation: int) -> bytes:
    """An EXIF block with an orientation and a signed rational (its exposure bias)."""
    entries = struct.pack("<HHI4s", 0x0112, 3, 1, struct.pack("<HH", orientation, 0))
    entries += struct.pack("<HHII", 0x9204, 10, 1, 38)
    return (
        b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
        + struct.pack("<ii", numerator, denominator)
    )  # fmt: skip


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with a chunk behind its header."""
    return png[:33] + chunk(kind, content) + png[33:]


def words(count: int) -> PngInfo:
    info = PngInfo()
    info.add_text("comment", "a" * count, zip=True)
    info.add_itxt("more", "b" * count, zip=True)
    return info


PNG, JPEG = saved("PNG"), saved("JPEG")
GOOD = {
    "jpeg": JPEG,
    "progressive": saved("JPEG", progressive=True),
    "cmyk": saved("JPEG", picture("CMYK")),
    "grey": saved("JPEG", picture("L")),
    "rational -1/0": saved("JPEG", exif=rational(-1, 0, 1)),
    "rational 0/0": saved("JPEG", exif=rational(0, 0, 1)),
    "exif is noise": saved("JPEG", exif=b"Exif\0\0" + bytes(range(40))),
    "exif is cut": saved("JPEG", exif=rational(1, 1, 1)[:20]),
    "trailing bytes": JPEG + b"\0" * 5000,
    "png": PNG,
    "png exif is no tiff": with_chunk(PNG, b"eXIf", b"no tiff at all"),
    "1.5 MB of text": saved("PNG", pnginfo=words(1_500_000)),
    "text bomb": saved("PNG", pnginfo=words(80_000_000)),
    "3 MB of profile": with_chunk(
        PNG, b"iCCP", b"p\0\0" + zlib.compress(os.urandom(1 << 10) * 3000)
    ),
    "unknown chunk": with_chunk(PNG, b"abCd", b"1234"),
    "palette": saved("PNG", picture("P")),
    "16 bit": saved("PNG", Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 257)),
    "gif": saved("GIF"),
    "animation": saved("GIF", save_all=True, append_images=[picture().transpose(0)]),
    "webp": saved("WEBP", lossless=True),
    "bmp": saved("BMP"),
    "tiff": saved("TIFF"),
    "tiff lzw": saved("TIFF", compression="tiff_lzw"),
    "tiff float": saved("TIFF", picture("F")),
    "avif": saved("AVIF", quality=95),
}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) run\nshowpage\n%%EOF\n"
BAD = {
    "empty": b"",
    "text": b"no image\n" * 99,
    "html": b"<!doctype html><title>404</title>",
    "eps": EPS,
    "psd": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 4, 8, 3) + bytes(200),
    "ico": saved("ICO", picture(size=(16, 16))),
    "tga": saved("TGA"),
    "ppm": saved("PPM"),
    "jpeg 2000": saved("JPEG2000"),
    "pcx": saved("PCX"),
    "icns": saved("ICNS", picture(size=(32, 32))),
    "pdf": saved("PDF"),
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "zip": b"PK\3\4" + bytes(99),
    "cut jpeg": JPEG[: len(JPEG) // 2],
    "cut png": PNG[: len(PNG) // 2],
    "header alone": PNG[:33],
    "wrong size": PNG[:16] + struct.pack(">II", 70_000, 70_000) + PNG[24:],
    "zero size": PNG[:16] + struct.pack(">II", 0, 0) + PNG[24:],
    "chunk of 2 GB": PNG[:33] + struct.pack(">I", 1 << 31) + b"tEXt" + PNG[33:],
    "flipped": PNG[:45] + bytes(b ^ 255 for b in PNG[45:60]) + PNG[60:],
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_photograph_is_decoded_whatever_else_its_file_says(kind: str):
    image = decode(GOOD[kind], 10**6)
    pixels = np.asarray(image).astype(int)
    assert (image.mode, image.size) == ("RGB", (24, 16))
    assert pixels[:, :8].mean() < 60
    assert pixels[:, -8:].mean() > 195


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_photograph_is_a_row_with_its_reason(kind: str, tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(BAD[kind])
    found = inspect(path, 10**6)
    assert found.status in ("unreadable", "truncated", "too_large")
    assert found.error
    assert " at 0x" not in found.error  # of memory: it would be another one the next time
    assert (found.width, found.height) == (0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_beside_broken_metadata_is_applied(orientation: int):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(saved("JPEG", exif=exif))))
    turned = decode(saved("JPEG", exif=rational(-1, 0, orientation)))
    assert np.array_equal(np.asarray(turned), np.asarray(expected))


def test_no_decoder_but_those_of_the_list_is_ever_asked(monkeypatch: pytest.MonkeyPatch):
    Image.init()
    asked = []
    for name in set(Image.OPEN) - set(FORMATS) - {"MPO"}:
        monkeypatch.setitem(Image.OPEN, name, (lambda *a: asked.append(a), None))
    for content in BAD.values():
        with pytest.raises(BadImage):
            decode(content, 10**6)
    assert not asked


def test_an_eps_called_jpg_starts_no_program(tmp_path: Path):
    """A `gs` that would leave a trace stands first in the path."""
    trace = tmp_path / "started"
    program = tmp_path / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    (tmp_path / "a.jpg").write_bytes(EPS)
    code = "import sys; from pathlib import Path; from stages.images.decode import inspect;"
    code += "print(inspect(Path(sys.argv[1]), 10**6).status)"
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-c", code, str(tmp_path / "a.jpg")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "unreadable\n"
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket"])
def test_what_is_no_regular_file_is_not_read(kind: str, tmp_path: Path):
    path = tmp_path / "a.jpg"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        import socket

        socket.socket(socket.AF_UNIX).bind(str(path))
    assert inspect(path, 100).status == "unreadable"


def test_a_file_of_many_gigabytes_is_not_read(tmp_path: Path):
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)
    os.truncate(path, 1 << 40)
    assert inspect(path, 100).status == "too_large"


PEAK = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from stages.images.decode import inspect
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with ThreadPoolExecutor(4) as pool:
    print({one.status for one in pool.map(lambda p: inspect(Path(p), 10**8), sys.argv[1:])})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["I;16", "LA"])
def test_the_largest_legal_images_have_the_peak_that_is_documented(mode: str, tmp_path: Path):
    """docs/reliability.md: two gigabytes for a process, however many threads it has."""
    if mode == "I;16":
        image = Image.fromarray(np.zeros((10_000, 10_000), np.uint16))
    else:
        image = Image.new(mode, (10_000, 10_000))
    image.save(tmp_path / "0.png", compress_level=1)
    paths = [shutil.copy(tmp_path / "0.png", tmp_path / f"{n}.png") for n in range(1, 4)]
    command = [sys.executable, "-c", PEAK, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    states, peak = done.stdout.splitlines()
    assert states == "{'ok'}"
    assert int(peak) < 2048, f"{peak} MB"


def holiday(root: Path) -> Path:
    for name in ("a.jpg", "b.PSD", "c.psd", "scan", "d.jpg_large", ".hidden.jpg", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)
    for name in ("@eaDir/a.jpg/SYNO_THUMB.jpg", "$RECYCLE.BIN/x.jpg", ".AppleDouble/a.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(JPEG)
    for name, target in {
        "to-it.jpg": "a.jpg", "to-scan.jpg": "scan", "to-hidden.jpg": ".hidden.jpg",
        "broken.jpg": "nowhere.jpg", "itself.jpg": "itself.jpg", "folder": "@eaDir",
        "to-notes": "notes.txt",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    return root


def test_every_entry_of_a_folder_is_an_image_or_in_a_count_with_its_reason(tmp_path: Path):
    root = holiday(tmp_path / "holiday")
    found, others = photographs(str(root), "")
    assert [photo.image_id for photo in found] == ["a.jpg", "to-hidden.jpg", "to-scan.jpg"]
    assert others == {
        ".psd": 2, "without a suffix": 1, ".jpg_large": 1, "hidden": 2, ".txt": 1,
        "@eaDir of a system": 1, "$RECYCLE.BIN of a system": 1, "broken links": 2,
        "links to a photograph found here": 1, "links to a passed-over folder": 1,
        "links to no image": 1,
    }  # fmt: skip
    assert len(found) + others.total() == len(list(root.iterdir()))
    assert in_words(others, 1) == "2 .psd and 12 of other kinds"


def test_a_folder_without_any_image_says_what_is_in_it(tmp_path: Path, project: Project):
    shutil.rmtree(project / "photos")
    (project / "photos").mkdir()
    (project / "photos/a.PSD").write_bytes(JPEG)
    said = refusal(project.stage("index", check=False))
    assert "below photos; passed over: 1 .psd" in said


def test_what_is_passed_over_is_said_by_the_index_and_by_predict(project: Project):
    for name in ("photos/a.PSD", "photos/test/b.PSD"):
        (project / name).write_bytes(JPEG)
    assert "index: passed over: 2 .psd" in project.stage("index").stderr
    done = project.run("ccd", "predict", "-o", "p.csv", "photos/test")
    assert "ccd predict: passed over in photos/test: 1 .psd" in done.stderr


def test_the_pipeline_knows_every_hostile_file_by_its_row(project: Project):
    project.set(source__max_bad_share=0.9, source__max_pixels=10**6)
    for number, content in enumerate(BAD.values()):
        (project / f"photos/train/bad{number}.jpg").write_bytes(content)
    os.mkfifo(project / "photos/train/pipe.jpg")
    project.stage("index")
    index = pd.read_parquet(project / "data/index.parquet")
    bad = index[index["status"] != "ok"]
    assert len(bad) == len(BAD) + 1
    assert (bad["error"] != "").all()


def test_a_photograph_that_became_a_pipe_is_refused(project: Project):
    photo = project / "photos/train/00000.jpg"
    photo.unlink()
    os.mkfifo(photo)
    said = refusal(project.stage("global_clip", check=False, CCD_BLOCK="7"))
    assert "photos/train/00000.jpg: no regular file, since the index was made" in said


def test_predict_takes_as_many_pixels_as_it_is_told(project: Project):
    picture(size=(300, 200)).save(project / "a.jpg")
    command = ("ccd", "predict", "a.jpg", "--max-pixels")
    assert "too_large (300 x 200 pixels)" in project.run(*command, "59999", check=False).stderr
    assert not project.run(*command, "60000").returncode


def test_a_fault_of_our_own_is_seen_and_no_bad_image(project: Project):
    code = project / "stages/images/decode.py"
    code.write_text(code.read_text().replace('layer.size, "white"', 'layer.sise, "white"'))
    Image.new("RGBA", (20, 20)).save(project / "photos/train/clear.png")
    done = project.stage("index", check=False)
    assert "AttributeError" in done.stderr
    assert "layer.sise" in done.stderr
