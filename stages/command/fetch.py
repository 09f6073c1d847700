"""Published data sets: where their archives are, under what terms, and how to get them."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets.utils import download_url
from torchvision.datasets.voc import DATASET_YEAR_DICT

from stages.runtime.errors import UserError, reason

UNPACKING = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
COCO = "http://images.cocodataset.org"


@dataclass(frozen=True)
class Archive:
    """A file to download, and the digest its publisher gives, if there is one."""

    url: str
    name: str
    gigabytes: float
    md5: str | None


@dataclass(frozen=True)
class DataSet:
    """archives: to be unpacked below `folder`. By hand, as `instructions` say, if there are none.

    needed: what is there below `folder` once it is complete.
    """

    folder: str
    archives: tuple[Archive, ...]
    terms: str
    needed: tuple[str, ...]
    instructions: str = ""


def _of_voc(year: str, gigabytes: float) -> Archive:
    known = DATASET_YEAR_DICT[year]
    return Archive(known["url"], known["filename"], gigabytes, known["md5"])


VOC_TERMS = (
    "The photographs are from Flickr, and its terms of use apply: for research, not to be "
    "redistributed."
)
DATA_SETS = {
    "voc07": DataSet(
        "data",
        (_of_voc("2007", 0.44), _of_voc("2007-test", 0.43)),
        VOC_TERMS,
        ("VOCdevkit/VOC2007/JPEGImages", "VOCdevkit/VOC2007/ImageSets/Main/test.txt"),
    ),
    "voc12": DataSet(
        "data",
        (_of_voc("2012", 1.9),),
        VOC_TERMS,
        ("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/ImageSets/Main/val.txt"),
    ),
    "coco": DataSet(
        "data/coco",
        (
            Archive(f"{COCO}/zips/train2014.zip", "train2014.zip", 12.6, None),
            Archive(f"{COCO}/zips/val2014.zip", "val2014.zip", 6.2, None),
            Archive(
                f"{COCO}/annotations/annotations_trainval2014.zip",
                "annotations_trainval2014.zip",
                0.24,
                None,
            ),
        ),
        "The annotations are under CC BY 4.0; the photographs are from Flickr, each under the "
        "licence that its author gave it.",
        ("train2014", "val2014", "annotations/instances_train2014.json"),
    ),
    "nuswide": DataSet(
        "data/nuswide",
        (),
        "The photographs are from Flickr. Their collector gives them to those who ask, as it sees "
        "fit; they are not to be redistributed.",
        ("Flickr", "spml/formatted_train_images.npy"),
        "NUS-WIDE cannot be downloaded without asking for it.\n"
        "  1. Ask for Flickr.zip with the request form of the NUS-WIDE page of the National\n"
        "     University of Singapore (LMS), and unpack it: data/nuswide/Flickr/actor/….jpg\n"
        "  2. The re-crawled lists that most papers use are in Zenodo record 10162606: the four\n"
        "     formatted_{train,val}_{images,labels}.npy go to data/nuswide/spml/\n"
        "  3. Or, for the official split (`ccd preset nuswide_official`), unpack Groundtruth and\n"
        "     ImageList: data/nuswide/Groundtruth/TrainTestLabels/, data/nuswide/ImageList/",
    ),
}


def description(name: str) -> str:
    """What `fetch` would do for a data set, and under what terms."""
    data = DATA_SETS[name]
    lines = [
        f"  {archive.url}\n      {archive.gigabytes:g} GB, "
        + (f"MD5 {archive.md5}" if archive.md5 else "no checksum is published")
        for archive in data.archives
    ]
    if data.instructions:
        lines.append(data.instructions)
    else:
        total = sum(archive.gigabytes for archive in data.archives)
        lines.insert(0, f"{name}: {total:.1f} GB to download, and unpack below {data.folder}/")
    return "\n".join([*lines, data.terms])


def fetch(name: str, say: Callable[[str], None]) -> None:
    """Download, verify and unpack what is not there yet. `UserError` for what goes wrong."""
    data = DATA_SETS[name]
    if not data.archives:
        raise UserError(f"{name} cannot be fetched; see `ccd fetch {name}`")
    folder = Path(data.folder)
    downloads = folder / ".downloads" / name  # there until everything is unpacked
    complete = all((folder / needed).exists() for needed in data.needed)
    if complete and not downloads.exists():
        say(f"{name} is there already, below {folder}/")
        return
    for archive in data.archives:
        path, partial = downloads / archive.name, f"{archive.name}.partial"
        try:
            if not path.exists():
                (downloads / partial).unlink(missing_ok=True)
                download_url(archive.url, str(downloads), partial, archive.md5)
                (downloads / partial).rename(path)
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(f"{archive.url}: {reason(error)}") from None
        if archive.md5 is None:
            with path.open("rb") as file:
                say(f"{archive.name}: SHA-256 {hashlib.file_digest(file, 'sha256').hexdigest()}")
        try:
            shutil.unpack_archive(path, folder, filter=None if path.suffix == ".zip" else "data")
        except UNPACKING as error:
            raise UserError(
                f"{path} cannot be unpacked ({reason(error)}); delete it to fetch it again"
            ) from None
    missing = [needed for needed in data.needed if not (folder / needed).exists()]
    if missing:
        raise UserError(f"the archives held no {missing[0]}; they are kept in {downloads}")
    shutil.rmtree(downloads)
    say(f"{name} is complete, below {folder}/")
