"""Tables: parquet files of fixed columns and, for labels, one a class; and small ones as CSV.

The same content gives the same bytes: no time, host or absolute path. Stages write below a staging
folder (`under`), from where `runtime/publishing.py` moves everything at once.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.runtime.errors import UserError
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

NAMES = ("class", "rung", "scorer", "split", "stage", "what")  # columns of a CSV that are text

# arrow's own allocators keep what was freed: with this one memory stays flat over many parts
pa.set_memory_pool(pa.system_memory_pool())


@dataclass(frozen=True)
class Table:
    """A parquet file: fixed columns of given types and, if `per_class`, a float32 one a class.

    gaps: whether a number may be missing, that is NaN; none is ever infinite.
    """

    path: Path
    schema: str
    columns: Mapping[str, str]
    per_class: bool = False
    gaps: bool = False


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

    The file has row groups of `ROWS`, however the rows came. Columns not in the schema are refused,
    and so are values that are not finite.
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
    digests = Digests()
    with pq.ParquetWriter(path, pa.schema(fields), compression="zstd") as writer:
        for part in chain([first], parts):
            _check_finite(table, part)
            columns = [  # a NaN stays a NaN: nothing is ever null
                pa.array(part[field.name].to_numpy(), field.type, from_pandas=False)
                for field in fields
            ]
            arrow = pa.Table.from_arrays(columns, schema=pa.schema(fields))
            digests.add(_columns(arrow))
            writer.write_table(arrow, row_group_size=max(1, len(arrow)))
        note["columns"] = digests.of_columns()
        note["sha256"] = note_digest(note)
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
        digests = Digests()
        for part in parts_of(len(arrow)):
            digests.add(_columns(arrow[part]))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(table.path, error) from None
    digests.check(table.path, note)
    return arrow.to_pandas(self_destruct=True), note


def read_parts(table: Table, index: str | None = None) -> Iterator[pd.DataFrame]:
    """The rows of a table, a row group at a time, checked as by `read_table`.

    Damage may show after the last part alone: publish nothing before.
    """
    file, note = _open(table, index)
    digests = Digests()
    for group in range(file.num_row_groups):
        try:
            arrow = file.read_row_group(group)
            digests.add(_columns(arrow))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(table.path, error) from None
        yield arrow.to_pandas()
    digests.check(table.path, note)


def _check_finite(table: Table, part: pd.DataFrame) -> None:
    if np.isfinite(part.select_dtypes("number").to_numpy()).all():  # at once, for many classes
        return
    for name in part.columns:
        values = part[name].to_numpy()
        if values.dtype.kind != "f":
            continue
        odd = np.isinf(values) if table.gaps else ~np.isfinite(values)
        if odd.any():
            row = part.iloc[int(odd.argmax())]
            raise UserError(
                f"{table.path}: {name} of {row.iloc[0]} would be {row[name]}; nothing was written"
            )


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV."""
    table.to_csv(path, index=False, lineterminator="\n")


def read_csv(path: Path) -> pd.DataFrame:
    """A CSV of the pipeline's own, in which a class may be called None, NA or 007.

    Raises `UserError` for a file that is not there or is no CSV.
    """
    try:
        return parse_csv(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise absent(path) from None
    except (OSError, ValueError) as error:
        raise damaged(path, error) from None


def parse_csv(text: str) -> pd.DataFrame:
    """What `write_csv` wrote; `ValueError` for what is no CSV."""
    columns = pd.read_csv(io.StringIO(text), nrows=0).columns
    empty = {name: [""] for name in columns if name not in NAMES}
    return pd.read_csv(
        io.StringIO(text), dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=empty
    )


def _open(table: Table, index: str | None) -> tuple[pq.ParquetFile, Provenance]:
    path = table.path
    if not path.exists():
        raise absent(path)
    try:
        file = pq.ParquetFile(path)
        note: Provenance = json.loads((file.metadata.metadata or {}).get(b"ccd", b"{}"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(path, error) from None
    check_note(path, table.schema, note, index)
    if note_digest(note) != note.get("sha256"):
        raise damaged(path, ValueError("note and digest differ"))
    return file, note


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
            columns[name] = utf8(column.to_pylist())
        else:
            columns[name] = column.to_numpy()
    return columns
