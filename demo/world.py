"""DVC stage `world`: draw the demo's photographs and write down what is on them.

Writes `data/demo/photos/{train,test}/*.jpg`, `data/demo/classes.txt` and, apart from them,
`data/demo/ground_truth.csv`, which only evaluation reads, and `data/demo/objects.csv`, the box of
every object, which the pipeline never reads.

    python -m demo.world
"""

from __future__ import annotations

import csv
import io
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from demo.scenes import draw_photo
from demo.shapes import CLASSES, Box

PARAMS = Path("demo/params.yaml")
OUTPUT = Path("data/demo")
SPLITS = ("train", "test")


def photo(seed: int, split: str, lenders: bool, number: int) -> tuple[bytes, list[tuple[str, Box]]]:
    """Photograph `number` of a split as JPEG bytes, and the class and box of each object."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    image, objects = draw_photo(rng, lenders)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue(), objects


def main() -> None:
    params = YAML(typ="safe").load(PARAMS)["world"]
    photos = OUTPUT / "photos"
    shutil.rmtree(photos, ignore_errors=True)
    rows, boxes = [], []
    with ProcessPoolExecutor() as pool:
        for split in SPLITS:
            (photos / split).mkdir(parents=True)
            draw = partial(photo, params["seed"], split, params["lenders"])
            drawn = pool.map(draw, range(params[split]), chunksize=50)
            for number, (jpeg, objects) in enumerate(drawn):
                image_id = f"{split}/{number:05d}.jpg"
                (photos / image_id).write_bytes(jpeg)
                names = {name for name, _ in objects}
                boxes += [[image_id, name, *box] for name, box in objects]
                rows.append([image_id, *(int(name in names) for name in CLASSES)])
            print(f"world: {params[split]} {split} photographs", flush=True)
    (OUTPUT / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    write_csv("ground_truth.csv", ["image_id", *CLASSES], rows)
    write_csv("objects.csv", ["image_id", "class", "x0", "y0", "x1", "y1"], boxes)


def write_csv(name: str, columns: list[str], rows: list[list[Any]]) -> None:
    """Write a table beside the photographs."""
    with (OUTPUT / name).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
