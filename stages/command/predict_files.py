"""What `ccd predict` writes: text, JSON, CSV or Parquet."""

from __future__ import annotations

import io
import json

import pandas as pd

from stages.command.predict import STATED
from stages.runtime.errors import clean
from stages.sources.photograph import is_formula


def content(table: pd.DataFrame, form: str) -> bytes:
    """Of a file of that form: text, json, csv or parquet. The table has its `labels` fourth."""
    if form == "parquet":
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        return buffer.getvalue()
    return {"text": as_text, "csv": as_csv, "json": as_json}[form](table).encode()


def as_text(table: pd.DataFrame) -> str:
    """A line an image: its names with their probabilities."""
    width = min(max((len(str(image)) for image in table["image"]), default=0), 60)
    lines = []
    for row in table.to_dict("records"):
        said = ", ".join(f"{name} {row[name]:.2f}" for name in row["labels"]) or "–"
        if row["status"] != "ok":
            said = f"({row['status']})"
        lines.append(clean(f"{row['image']:<{width}}  {said}") + "\n")
    return "".join(lines)


def as_csv(table: pd.DataFrame) -> str:
    """CSV, in which no cell of text is a formula for a spreadsheet; labels are parted by `; `."""

    def safe(text: str, front: str = "'") -> str:
        return f"{front}{text}" if is_formula(text) else text

    table = table.rename(columns=safe)
    table["image"] = [safe(path, front="./") for path in table["image"]]  # the same path
    table["error"] = [safe(error) for error in table["error"]]
    table["labels"] = [safe("; ".join(names)) for names in table["labels"]]
    return str(table.to_csv(index=False))


def as_json(table: pd.DataFrame) -> str:
    """A list, an object an image."""
    stated = [*STATED, "labels"]
    rows = []
    for row in table.to_dict("records"):
        known = {name: round(float(p), 4) for name, p in row.items() if name not in stated}
        said = {key: row[key] for key in stated}
        rows.append(said | {"probabilities": known if row["status"] == "ok" else None})
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
