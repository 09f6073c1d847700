"""The benchmark: prints a table, and writes `bench/results.json`.

python -m bench         `make bench`: 30 to 45 minutes on two cores
python -m bench --rows abcd --model RN50x64-quickgelu --images 256 --results bench/gpu.json
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from bench import engines, predicting, speed, whole
from bench.speed import Row

RESULTS = Path(__file__).parent / "results.json"


def main(
    model: Annotated[str, typer.Option(help="The teacher, an open_clip model.")] = "RN50-quickgelu",
    size: Annotated[int, typer.Option(help="Side of a view, in pixels.")] = 640,
    precision: Annotated[str, typer.Option(help="bfloat16, float16 or float32.")] = "bfloat16",
    images: Annotated[int, typer.Option(help="Photographs for rows a to d.")] = 16,
    views: Annotated[int, typer.Option(help="Local views of each.")] = 5,
    rounds: Annotated[int, typer.Option(help="Alternate measurements.")] = 5,
    most: Annotated[int, typer.Option(help="Photographs for row f, at most.")] = 100_000,
    rows: Annotated[str, typer.Option(help="Which rows, as letters.")] = "abcdefghij",
    results: Annotated[Path, typer.Option(help="Where to write the figures.")] = RESULTS,
) -> None:
    """Measure the pipeline against the bare model, and show the ratios."""
    Path(".ccd").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=".ccd") as temporary:
        folder = Path(temporary).resolve()
        found = []
        for row in measured(folder, model, size, precision, images, views, rounds, most, rows):
            print(row, flush=True)
            found.append(row)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "model": model,
        "size": size,
        "precision": precision,
        "images": images,
        "rows": rows,
    }
    results.write_text(json.dumps({"machine": machine, "rows": found}, indent=2) + "\n")
    print(pd.DataFrame(found).to_string(index=False))


def measured(
    folder: Path,
    model: str,
    size: int,
    precision: str,
    images: int,
    views: int,
    rounds: int,
    most: int,
    rows: str,
) -> Iterator[Row]:
    """The rows asked for, one after the other."""
    here = Path.cwd()
    os.chdir(folder)  # the scratch of a job lies in the current folder
    if set(rows) & set("abc"):
        yield from speed.inference(folder, model, precision, size, images, views, rounds)
    if "d" in rows:
        yield from speed.training(folder, images, min(size, 448), precision, rounds)
        light = "timm/tf_efficientnet_lite0"
        yield from speed.training(folder, 8 * images, min(size, 192), "float32", rounds, light)
    os.chdir(here)
    shutil.rmtree(folder / "photos", ignore_errors=True)
    if "e" in rows:
        yield from whole.no_op(folder, rounds)
    if "f" in rows:
        yield from whole.growth(folder, (most // 100, most // 10, most))
    if "g" in rows:
        yield from whole.resume(folder)
    if "h" in rows:
        yield from whole.ranks(folder, rounds)
    if "i" in rows:
        yield from engines.compare_engines(folder / "engines", rounds)
    if "j" in rows:
        yield from predicting.compare_predictions(folder / "students", rounds)


if __name__ == "__main__":
    typer.run(main)
