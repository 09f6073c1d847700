"""The index as the other stages read it: which images there are, and which can be used."""

from __future__ import annotations

import hashlib

import pandas as pd

from stages.artifacts import INDEX
from stages.runtime.types import Booleans
from stages.storage.provenance import parts_of
from stages.storage.tables import read_table

ID_COLUMNS = ["image_id", "split", "status", "sha256"]  # what everything else stands for


def read_index(columns: list[str] | None = None) -> tuple[pd.DataFrame, str]:
    """The index, or some columns of it, `ID_COLUMNS` among them, and its digest."""
    index, _ = read_table(INDEX, columns=columns)
    return index, index_digest(index)


def index_digest(index: pd.DataFrame) -> str:
    """Digest of what the rows of everything else stand for: ids, splits, status and content."""
    rows = index[ID_COLUMNS]
    digest = hashlib.sha256()
    for part in parts_of(len(rows)):
        text = rows[part].to_csv(index=False, header=not part.start, lineterminator="\n")
        digest.update(text.encode())
    return digest.hexdigest()


def usable(index: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """The rows of the images that could be read, of one split or of all, in the index's order."""
    return index[is_usable(index, split)].reset_index(drop=True)


def is_usable(index: pd.DataFrame, split: str | None = None) -> Booleans:
    """Which rows are those of `usable`."""
    wanted = index["status"] == "ok"
    if split is not None:
        wanted &= index["split"] == split
    return wanted.to_numpy()
