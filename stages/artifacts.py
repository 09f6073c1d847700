"""Every artifact's path and schema in one table; how one is written, and checked when read.

A table is parquet (readable by `pandas.read_parquet`), an array store is a zarr group (readable by
`xarray.open_zarr`). Both carry a provenance: schema name, digest of the index they were made from,
and what the stage adds. The same content gives the same bytes: no time, host or absolute path.

Stages write below a staging folder (`under`), from where `stages.job` publishes everything at once.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import UserError, reason

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
    "ccd.bias/1",
    {"class": "string", "bias": "float32", "count": "int64", "measured": "bool"},
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
    rows = index[["image_id", "split", "status", "sha256"]].to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(rows.encode()).hexdigest()


def file_digest(table: Table) -> str:
    """Digest of a table's file, for what goes with it row by row."""
    return hashlib.sha256(table.path.read_bytes()).hexdigest()


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


def write_table(table: Table, frame: pd.DataFrame, provenance: Provenance, under: Path) -> None:
    """Write `frame` to the table's path below `under`. Columns not in the schema are refused."""
    classes = class_columns(table, frame)
    if classes and not table.per_class:
        raise ValueError(f"{table.path}: no columns {classes} in {table.schema}")
    types = dict(table.columns) | dict.fromkeys(classes, "float32")
    fields = [
        pa.field(name, pa.type_for_alias(types[name]), nullable=False) for name in frame.columns
    ]
    columns = [  # a NaN stays a NaN: nothing is ever null
        pa.array(frame[field.name].to_numpy(), field.type, from_pandas=False) for field in fields
    ]
    note = {"schema": table.schema} | ({"classes": classes} if table.per_class else {}) | provenance
    arrow = pa.Table.from_arrays(columns, schema=pa.schema(fields))
    note["sha256"] = _digest(note, _columns(arrow))
    path = under / table.path
    path.parent.mkdir(parents=True, exist_ok=True)
    described = arrow.replace_schema_metadata({"ccd": json.dumps(note, sort_keys=True)})
    pq.write_table(described, path, compression="zstd")


def read_table(table: Table, index: str | None = None) -> tuple[pd.DataFrame, Provenance]:
    """The table and its provenance, checked: present, whole, of its schema, made from `index`.

    Raises `UserError` otherwise, with what to do.
    """
    path = table.path
    if not path.exists():
        raise _absent(path)
    try:
        arrow = pq.read_table(path)
        note: Provenance = json.loads((arrow.schema.metadata or {}).get(b"ccd", b"{}"))
        columns = _columns(arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error) from None
    _check_note(path, table.schema, note, index)
    if _digest(note, columns) != note.get("sha256"):
        raise _damaged(path, ValueError("content and digest differ"))
    return arrow.to_pandas(), note


def write_store(
    store: Store,
    arrays: Mapping[str, npt.NDArray[Any]],
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
    note = {"schema": store.schema} | provenance
    note["sha256"] = _digest(note, arrays)
    group = zarr.open_group(path, mode="w", zarr_format=3, attributes=dict(sorted(note.items())))
    for name, values in sorted(arrays.items()):
        row_bytes = max(1, values[:1].nbytes)
        rows = max(1, min(len(values), (1 << 20) // row_bytes))
        shard = rows * max(1, min(64, -(-len(values) // rows)))
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=(rows, *(max(1, side) for side in values.shape[1:])),
            shards=(shard, *(max(1, side) for side in values.shape[1:])),
            compressors=[codec],
            fill_value=np.nan,
            dimension_names=store.arrays[name],
            config={"write_empty_chunks": True},
        )
        array[...] = values
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


def read_store(
    store: Store, index: str | None = None
) -> tuple[dict[str, npt.NDArray[Any]], Provenance]:
    """The arrays of a store and its provenance, checked as `read_table` does, digest included."""
    import zarr

    path = store.path
    if not path.exists():
        raise _absent(path)
    try:
        group: Any = zarr.open_group(path, mode="r")
        note: Provenance = dict(group.attrs)
        arrays = {name: np.asarray(group[name][...]) for name in store.arrays}
    except Exception as error:  # zarr and its codecs raise many kinds for a damaged store
        raise _damaged(path, error) from None
    _check_note(path, store.schema, note, index)
    if _digest(note, arrays) != note.get("sha256"):
        raise _damaged(path, ValueError("content and digest differ"))
    return arrays, note


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


def _digest(note: Provenance, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    """Digest of a provenance, but for the digest in it, and of arrays with names, shapes, types."""
    digest = hashlib.sha256()
    described = {key: value for key, value in note.items() if key != "sha256"}
    digest.update(json.dumps(described, sort_keys=True).encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"\n{name} {values.shape} {values.dtype}\n".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


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
