"""Every artifact's path and schema in one table; how one is written, and checked when read.

A table is parquet (readable by `pandas.read_parquet`), an array store is a zarr group (readable by
`xarray.open_zarr`). Both carry a provenance: schema name, digest of the index they were made from,
and what the stage adds. The same content gives the same bytes: no time, host or absolute path.

Stages write below a staging folder (`under`), from where `stages.job` publishes everything at once.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError, reason

# arrow's own allocators keep what was freed: with this one memory stays flat over many parts
pa.set_memory_pool(pa.system_memory_pool())

Provenance = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """A parquet file: fixed columns of given types and, if `per_class`, a float32 one a class."""

    path: Path
    schema: str
    columns: Mapping[str, str]
    per_class: bool = False


@dataclass(frozen=True)
class Store:
    """A zarr group: the arrays in it, each with the names of its dimensions."""

    path: Path
    schema: str
    arrays: Mapping[str, tuple[str, ...]]


class Rows(NamedTuple):
    """So many rows of an array, in parts: all of them may not fit into memory."""

    total: int
    parts: Iterable[npt.NDArray[Any]]


ROWS = 1024  # of labels, scores or embeddings that the cheap stages work on at a time

ID = {"image_id": "string"}
VIEW = ID | {"class": "string", "rank": "int32"}

INDEX = Table(
    Path("data/index.parquet"),
    "ccd.index/1",
    ID | {"path": "string", "split": "string", "width": "int32", "height": "int32"}
    | {"sha256": "string", "status": "string", "error": "string"},
)  # fmt: skip
GROUND_TRUTH = Table(Path("data/ground_truth.parquet"), "ccd.ground_truth/1", ID, per_class=True)
BIAS = Table(
    Path("data/bias.parquet"),
    "ccd.bias/2",
    # similarity: the class's mean cosine over the training images
    {
        "class": "string",
        "bias": "float32",
        "count": "int64",
        "measured": "bool",
        "similarity": "float32",
    },
)
GLOBAL_SCORES = Table(Path("data/global_scores.parquet"), "ccd.scores/1", ID, per_class=True)
INITIAL_LABELS = Table(Path("data/initial_labels.parquet"), "ccd.labels/1", ID, per_class=True)
CAM_BOXES = Table(
    Path("data/cam_boxes.parquet"),
    "ccd.boxes/2",
    # edges in pixels of the upright original, and of the square that the student saw
    VIEW | {"score": "float32"} | dict.fromkeys(("x0", "y0", "x1", "y1"), "int32")
    | dict.fromkeys(("u0", "v0", "u1", "v1"), "int32"),
)  # fmt: skip
LOCAL_SCORES = Table(Path("data/local_scores.parquet"), "ccd.view_scores/1", VIEW, per_class=True)
LOCAL_LABELS = Table(Path("data/local_labels.parquet"), "ccd.labels/1", ID, per_class=True)
PSEUDO_LABELS = Table(Path("data/pseudo_labels.parquet"), "ccd.labels/1", ID, per_class=True)
PREDICTIONS = Table(Path("data/predictions.parquet"), "ccd.predictions/1", ID, per_class=True)

CLASS_TEXT = Store(
    Path("data/class_text.zarr"), "ccd.class_text/1", {"embedding": ("class", "dim")}
)
GLOBAL_CLIP = Store(
    Path("data/global_clip.zarr"), "ccd.global_clip/1", {"embedding": ("image", "dim")}
)
CAM_MAPS = Store(Path("data/cam_maps.zarr"), "ccd.cam_maps/1", {"map": ("view", "y", "x")})
LOCAL_CLIP = Store(Path("data/local_clip.zarr"), "ccd.local_clip/1", {"embedding": ("view", "dim")})

TEACHER = Path("data/weights/teacher")  # an open_clip local-dir
STUDENT_INIT = Path("data/weights/student_init.safetensors")
WARMUP_STUDENT = Path("data/warmup/student.safetensors")
WARMUP_OPTIMISER = Path("data/warmup/optimiser.safetensors")
WARMUP_HISTORY = Path("data/warmup/history.csv")
STUDENT = Path("data/classifier/student.safetensors")
TRAIN_HISTORY = Path("data/classifier/history.csv")
RESULTS = Path("results")
REPORT = Path("data/report/index.html")


def index_digest(index: pd.DataFrame) -> str:
    """Digest of what the rows of everything else stand for: ids, splits, status and content."""
    rows = index[["image_id", "split", "status", "sha256"]]
    digest = hashlib.sha256()
    for part in parts_of(len(rows)):
        text = rows[part].to_csv(index=False, header=not part.start, lineterminator="\n")
        digest.update(text.encode())
    return digest.hexdigest()


def file_digest(table: Table) -> str:
    """Digest of a table's file, for what goes with it row by row."""
    with table.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def usable(index: pd.DataFrame, split: str | None = None) -> pd.DataFrame:
    """The rows of the images that could be read, of one split or of all, in the index's order."""
    wanted = index["status"] == "ok"
    if split is not None:
        wanted &= index["split"] == split
    return index[wanted].reset_index(drop=True)


def class_columns(table: Table, frame: pd.DataFrame) -> list[str]:
    """The class names of a label table, in their order."""
    return [name for name in frame.columns if name not in table.columns]


def class_values(table: Table, frame: pd.DataFrame) -> npt.NDArray[np.float32]:
    """The labels of a label table: (rows, classes)."""
    return frame[class_columns(table, frame)].to_numpy(np.float32)


def class_table(
    ids: pd.DataFrame, values: npt.NDArray[Any], classes: Iterable[str]
) -> pd.DataFrame:
    """A label table: the columns of `ids` (rows), then `values` (rows, classes) as float32."""
    scores = pd.DataFrame(
        np.asarray(values, np.float32), columns=pd.Index(list(classes), dtype=object)
    )
    return pd.concat([ids.reset_index(drop=True), scores], axis=1)


def write_table(
    table: Table, frame: pd.DataFrame | Iterable[pd.DataFrame], provenance: Provenance, under: Path
) -> None:
    """Write `frame`, or its rows in parts, at least one, to the table's path below `under`.

    The file has row groups of `ROWS`, however the rows came. Columns not in the schema are refused.
    """
    parts = _regrouped_tables([frame] if isinstance(frame, pd.DataFrame) else frame)
    first = next(parts)
    classes = class_columns(table, first)
    if classes and not table.per_class:
        raise ValueError(f"{table.path}: no columns {classes} in {table.schema}")
    types = dict(table.columns) | dict.fromkeys(classes, "float32")
    fields = [
        pa.field(name, pa.type_for_alias(types[name]), nullable=False) for name in first.columns
    ]
    note: Provenance = {"schema": table.schema} | provenance
    if table.per_class:
        note["classes"] = classes
    path = under / table.path
    path.parent.mkdir(parents=True, exist_ok=True)
    digests = _Digests()
    with pq.ParquetWriter(path, pa.schema(fields), compression="zstd") as writer:
        for part in chain([first], parts):
            columns = [  # a NaN stays a NaN: nothing is ever null
                pa.array(part[field.name].to_numpy(), field.type, from_pandas=False)
                for field in fields
            ]
            arrow = pa.Table.from_arrays(columns, schema=pa.schema(fields))
            digests.add(_columns(arrow))
            writer.write_table(arrow, row_group_size=max(1, len(arrow)))
        note["columns"] = digests.of_columns()
        note["sha256"] = _digest_of_note(note)
        writer.add_key_value_metadata({"ccd": json.dumps(note, sort_keys=True)})


def read_table(
    table: Table, index: str | None = None, columns: list[str] | None = None
) -> tuple[pd.DataFrame, Provenance]:
    """The table, or some of its columns, and its provenance, checked.

    It is present, whole, of its schema and made from `index`; else `UserError`, with what to do.
    """
    file, note = _open(table, index)
    try:
        arrow = file.read(columns)
        digests = _Digests()
        for part in parts_of(len(arrow)):
            digests.add(_columns(arrow[part]))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(table.path, error) from None
    digests.check(table.path, note)
    return arrow.to_pandas(self_destruct=True), note


def read_parts(table: Table, index: str | None = None) -> Iterator[pd.DataFrame]:
    """The rows of a table, a row group at a time, checked as by `read_table`.

    Damage may show after the last part alone: publish nothing before.
    """
    file, note = _open(table, index)
    digests = _Digests()
    for group in range(file.num_row_groups):
        try:
            arrow = file.read_row_group(group)
            digests.add(_columns(arrow))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _damaged(table.path, error) from None
        yield arrow.to_pandas()
    digests.check(table.path, note)


def _open(table: Table, index: str | None) -> tuple[pq.ParquetFile, Provenance]:
    path = table.path
    if not path.exists():
        raise _absent(path)
    try:
        file = pq.ParquetFile(path)
        note: Provenance = json.loads((file.metadata.metadata or {}).get(b"ccd", b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    _check_note(path, table.schema, note, index)
    if _digest_of_note(note) != note.get("sha256"):
        raise _damaged(path, ValueError("note and digest differ"))
    return file, note


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
    digests = _Digests()
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
            digests.add({name: part})
            array[start : start + len(part)] = part
            start += len(part)
        if start != rows.total:
            raise ValueError(f"{store.path}: {start} rows of {name}, not {rows.total}")
    for name, strings in (labels or {}).items():
        text = np.array(list(strings), dtype=object)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # zarr warns that other readers may not know strings yet
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
    note: Provenance = {"schema": store.schema, "columns": digests.of_columns()} | provenance
    note["sha256"] = _digest_of_note(note)
    group.attrs.update(dict(sorted(note.items())))


def read_store(store: Store, index: str | None = None) -> tuple[dict[str, Any], Provenance]:
    """The arrays of a store, read as they are sliced, and its provenance, checked.

    Their content is read once through for its digest.
    """
    import zarr

    path = store.path
    if not path.exists():
        raise _absent(path)
    digests = _Digests()
    try:
        group: Any = zarr.open_group(path, mode="r")
        note: Provenance = dict(group.attrs)
        arrays = {name: group[name] for name in store.arrays}
        for name, array in arrays.items():
            for part in parts_of(array.shape[0], array.chunks[0] * max(1, ROWS // array.chunks[0])):
                digests.add({name: array[part]})
    except Exception as error:  # zarr and its codecs raise many kinds for a damaged store
        raise _damaged(path, error) from None
    _check_note(path, store.schema, note, index)
    if _digest_of_note(note) != note.get("sha256"):
        raise _damaged(path, ValueError("note and digest differ"))
    digests.check(path, note)
    return arrays, note


def parts_of(stop: int, size: int = ROWS, start: int = 0) -> list[slice]:
    """start..stop in slices of `size`, at least one: rows that are worked on at a time."""
    firsts = range(start, max(stop, start + 1), size)
    return [slice(first, min(first + size, stop)) for first in firsts]


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


def _regrouped_tables(parts: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The same rows in parts of `ROWS`, at least one; the last may have less."""
    waiting = pd.DataFrame()
    for number, part in enumerate(parts):
        waiting = pd.concat([waiting, part]) if number and len(waiting) else part
        while len(waiting) > ROWS:
            yield waiting[:ROWS]
            waiting = waiting[ROWS:]
    yield waiting


def _columns(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """The columns as arrays; one of strings as its UTF-8 bytes, each string ended by a zero."""
    columns = {}
    for name in table.column_names:
        column = table.column(name)
        if pa.types.is_string(column.type):
            text = "".join(f"{value}\0" for value in column.to_pylist())
            columns[name] = np.frombuffer(text.encode(), np.uint8)
        else:
            columns[name] = column.to_numpy()
    return columns


class _Digests:
    """Digests of named arrays whose rows come in parts; the same however they are parted."""

    def __init__(self) -> None:
        self._rows: dict[str, Any] = {}
        self._kinds: dict[str, str] = {}

    def add(self, parts: Mapping[str, npt.NDArray[Any]]) -> None:
        for name, part in parts.items():
            self._kinds[name] = f"{part.dtype} {part.shape[1:]}"
            self._rows.setdefault(name, hashlib.sha256()).update(np.ascontiguousarray(part))

    def of_columns(self) -> dict[str, str]:
        return {
            name: hashlib.sha256(f"{self._kinds[name]} {rows.hexdigest()}".encode()).hexdigest()
            for name, rows in sorted(self._rows.items())
        }

    def check(self, path: Path, note: Provenance) -> None:
        if not self.of_columns().items() <= note["columns"].items():
            raise _damaged(path, ValueError("content and digest differ"))


def _digest_of_note(note: Provenance) -> str:
    """Digest of a provenance, but for the digest in it; the arrays' own are among it."""
    described = {key: value for key, value in note.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _check_note(path: Path, schema: str, note: Provenance, index: str | None) -> None:
    if note.get("schema") != schema:
        raise UserError(f"{path} is of schema {note.get('schema')}, not {schema}: {_redo(path)}")
    if index is not None and note.get("index") != index:
        raise UserError(
            f"{path} was made from another index than data/index.parquet "
            f"({str(note.get('index'))[:12]}, not {index[:12]}): {_redo(path)}"
        )


def _redo(path: Path) -> str:
    return f"delete it and run `dvc repro {path}`"


def _absent(path: Path) -> UserError:
    return UserError(f"{path} is not there: run `dvc repro {path}` first")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({reason(error)}): {_redo(path)}")
