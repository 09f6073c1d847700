"""Array stores: zarr groups, whose arrays are read as they are sliced.

The same content gives the same bytes: no time, host or absolute path. Stages write below a staging
folder (`under`), from where `runtime/publishing.py` moves everything at once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import numpy.typing as npt

from stages.runtime.errors import UserError
from stages.runtime.types import Booleans, Floats
from stages.storage.provenance import (
    ROWS,
    Digests,
    Provenance,
    absent,
    check_note,
    damaged,
    note_digest,
    parts_of,
    utf8,
)


@dataclass(frozen=True)
class Store:
    """A zarr group: the arrays in it, each with the names of its dimensions.

    gaps: whether rows may be missing, that is NaN; no value is ever infinite.
    """

    path: Path
    schema: str
    arrays: Mapping[str, tuple[str, ...]]
    gaps: bool = False


class StoredArray(Protocol):
    """An array on disk, read as it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As numpy's."""

    def __getitem__(self, key: Any, /) -> npt.NDArray[Any]:
        """As numpy's."""


class Rows(NamedTuple):
    """So many rows of an array, in parts: all of them may not fit into memory."""

    total: int
    parts: Iterable[npt.NDArray[Any]]


def write_store(
    store: Store,
    arrays: Mapping[str, npt.NDArray[Any] | Rows],
    provenance: Provenance,
    under: Path,
    labels: Mapping[str, Iterable[str]] | None = None,
) -> None:
    """Write `arrays` and, as coordinates, the string `labels` of dimensions, below `under`.

    Chunks of about 1 MB in few shards, with checksums; the digest of the content is an attribute.
    """
    import zarr
    from zarr.codecs import ZstdCodec

    path = under / store.path
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = ZstdCodec(level=1, checksum=True)
    group = zarr.open_group(path, mode="w", zarr_format=3)
    digests = Digests()
    for name, given in sorted(arrays.items()):
        rows = given if isinstance(given, Rows) else Rows(len(given), [given])
        parts = iter(rows.parts)
        first = next(parts)
        row_bytes = max(1, math.prod(first.shape[1:]) * first.dtype.itemsize)
        chunk = max(1, min(rows.total, (1 << 20) // row_bytes))
        shard = chunk * max(1, min(64, -(-rows.total // chunk)))
        sides = [max(1, side) for side in first.shape[1:]]
        array = group.create_array(
            name,
            shape=(rows.total, *first.shape[1:]),
            dtype=first.dtype,
            chunks=(chunk, *sides),
            shards=(shard, *sides),
            compressors=[codec],
            fill_value=np.nan,
            dimension_names=store.arrays[name],
            config={"write_empty_chunks": True},
        )
        start = 0
        for part in _regrouped(chain([first], parts), shard):
            odd = np.isinf(part) if store.gaps else ~np.isfinite(part)
            if odd.any():
                raise UserError(f"{store.path}: a value of {name} is not finite")
            digests.add({name: part})
            array[start : start + len(part)] = part
            start += len(part)
        if start != rows.total:
            raise ValueError(f"{store.path}: {start} rows of {name}, not {rows.total}")
    for name, strings in (labels or {}).items():
        text = np.array(list(strings), dtype=object)
        with warnings.catch_warnings():  # zarr warns that other readers may not know strings yet
            warnings.simplefilter("ignore")
            array = group.create_array(
                name,
                shape=text.shape,
                dtype=str,
                chunks=(max(1, len(text)),),
                compressors=[codec],
                dimension_names=(name,),
                config={"write_empty_chunks": True},
            )
            array[...] = text
        digests.add({name: utf8(text)})
    note: Provenance = {"schema": store.schema, "columns": digests.of_columns()} | provenance
    note["sha256"] = note_digest(note)
    attributes: dict[str, Any] = dict(sorted(note.items()))
    group.attrs.update(attributes)


def read_store(store: Store, index: str | None = None) -> tuple[dict[str, StoredArray], Provenance]:
    """The arrays of a store, read as they are sliced, and its provenance, checked.

    Their content is read once through for its digest.
    """
    import zarr

    path = store.path
    if not path.exists():
        raise absent(path)
    digests = Digests()
    try:
        group: Any = zarr.open_group(path, mode="r")
        note = cast(Provenance, dict(group.attrs))
        arrays: dict[str, Any] = {name: group[name] for name in store.arrays}
        for name in sorted(set(note.get("columns", {})) - set(arrays)):
            digests.add({name: utf8(group[name][...])})
        for name, array in arrays.items():
            for part in parts_of(array.shape[0], array.chunks[0] * max(1, ROWS // array.chunks[0])):
                digests.add({name: array[part]})
    except Exception as error:  # zarr and its codecs raise many kinds for a damaged store
        raise damaged(path, error) from None
    check_note(path, store.schema, note, index)
    if note_digest(note) != note.get("sha256"):
        raise damaged(path, ValueError("note and digest differ"))
    digests.check(path, note)
    return arrays, note


def with_gaps(parts: Iterable[Floats], there: Booleans) -> Iterator[Floats]:
    """The rows of `parts` where `there` is True, rows of NaN between, before and behind them."""
    places = np.flatnonzero(there)
    begin, used = 0, 0
    for part in parts:
        used += len(part)
        end = int(places[used]) if used < len(places) else len(there)
        rows = np.full((end - begin, *part.shape[1:]), np.nan, np.float32)
        rows[there[begin:end]] = part
        yield rows
        begin = end


def _regrouped(parts: Iterable[npt.NDArray[Any]], size: int) -> Iterator[npt.NDArray[Any]]:
    """The same rows in parts of `size`, at least one; the last may have less."""
    waiting: list[npt.NDArray[Any]] = []
    for part in parts:
        waiting.append(part)
        while sum(map(len, waiting)) > size:
            rows = np.concatenate(waiting)
            yield rows[:size]
            waiting = [rows[size:]]
    yield np.concatenate(waiting)
