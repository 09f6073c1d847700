"""Stage `index`: which images there are, and which of them can be used.

Reads the user's photographs, or a data set's, and decodes each once. Writes `data/index.parquet`,
one row an image with its split, upright size, digest and status; the order of its rows is the order
of everything that follows. A bad image is a row with a status, never a crash and never gone.

    python -m stages.index
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd

from stages.artifacts import INDEX
from stages.images.decode import Inspection, inspect
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import meter, say
from stages.sources import folder
from stages.sources.catalogue import DATA_SETS, odd_images
from stages.sources.photograph import Photograph
from stages.storage.tables import write_table

AHEAD = 1024  # images that wait for a thread: of a great many, not all at once


def run(params: Params, job: Job) -> None:
    source = params.source
    photos = photographs(source.kind, source.root, source.test_folder)
    if not photos:
        raise UserError(f"source.root in params.yaml: {source.root} lists no image")
    parts = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        meter(job.stage, "images", len(photos)) as progress,
    ):
        while photos:
            some, photos = photos[:AHEAD], photos[AHEAD:]
            inspected = pool.map(lambda photo: _inspect(photo, source.max_pixels), some)
            rows = []
            try:
                for photo, result in zip(some, inspected, strict=True):
                    rows.append(_row(photo, result))
                    progress.advance(1, failed=int(rows[-1]["status"] != "ok"))
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
            parts.append(pd.DataFrame(rows, columns=list(INDEX.columns)))
    index = pd.concat(parts, ignore_index=True)
    check(index, source.max_bad_share)
    counts = {split: int((index["split"] == split).sum()) for split in ("train", "test")}
    for odd in odd_images(source.kind, counts):
        say(f"index: warning: {odd}")
    bad = int((index["status"] != "ok").sum())
    say(f"index: {counts['train']} to train on, {counts['test']} held out; {bad} of them unusable")
    write_table(INDEX, index, {}, job.staging)


def photographs(kind: str, root: str, test_folder: str) -> list[Photograph]:
    """What a source of that kind says there is, whether or not it can be used."""
    if kind == "folder":
        photos, passed_over = folder.photographs(root, test_folder)
        if passed_over:
            say(f"index: passed over: {folder.in_words(passed_over)}")
        return photos
    if not Path(root).is_dir():
        raise UserError(f"source.root in params.yaml: {root} is no folder")
    return DATA_SETS[kind].photographs(root)


def _inspect(photo: Photograph, max_pixels: int) -> Inspection:
    if photo.error:
        return Inspection(0, 0, "", "bad_name", photo.error)
    return inspect(Path(photo.path), max_pixels)


def _row(photo: Photograph, result: Inspection) -> dict[str, object]:
    return {
        "image_id": photo.image_id, "path": photo.path, "split": photo.split,
        "width": result.width, "height": result.height, "sha256": result.sha256,
        "status": result.status, "error": result.error,
    }  # fmt: skip


def check(index: pd.DataFrame, max_bad_share: float) -> None:
    """Raise `UserError` for an index that nothing good can come of."""
    twice = index["image_id"][index["image_id"].duplicated()]
    if len(twice):
        raise UserError(
            f"two images have the id {twice.iloc[0]!r}: rename one of them or, if a list names it "
            "twice, or the lists of both splits do, take it out of one"
        )
    bad = index[index["status"] != "ok"]
    if len(bad) > max_bad_share * len(index):
        raise UserError(
            f"{len(bad)} of {len(index)} images cannot be used, a larger share than "
            f"source.max_bad_share {max_bad_share} in params.yaml. {_some(bad)}"
        )
    if not ((index["split"] == "train") & (index["status"] == "ok")).any():
        raise UserError("no image to train on: all of them are of the test split or unusable")


def _some(bad: pd.DataFrame, count: int = 5) -> str:
    lines: Iterable[str] = (
        f"{row.image_id}: {row.status} ({row.error})" for row in bad.head(count).itertuples()
    )
    return "The first: " + "; ".join(lines)


if __name__ == "__main__":
    main("index", run)
