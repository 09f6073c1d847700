"""DVC stage `world`: draw the demo's photographs and write down what is on them.

Writes `data/demo/photos/{train,test}/*.jpg`, `data/demo/classes.txt` and, apart from them,
`data/demo/ground_truth.csv`, which only evaluation reads.

    python -m data.demo.world
"""

from __future__ import annotations

import csv
import io
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML

from data.demo.scenes import draw_photo
from data.demo.shapes import CLASSES

HERE = Path("data/demo")
SPLITS = ("train", "test")


def photo(seed: int, split: str, number: int) -> tuple[bytes, set[str]]:
    """Photograph `number` of a split as JPEG bytes, and the classes on it."""
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    image, names = draw_photo(rng)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue(), names


def main() -> None:
    params = YAML(typ="safe").load(HERE / "params.yaml")["world"]
    photos = HERE / "photos"
    shutil.rmtree(photos, ignore_errors=True)
    rows = []
    with ProcessPoolExecutor() as pool:
        for split in SPLITS:
            (photos / split).mkdir(parents=True)
            draw = partial(photo, params["seed"], split)
            drawn = pool.map(draw, range(params[split]), chunksize=50)
            for number, (jpeg, names) in enumerate(drawn):
                image_id = f"{split}/{number:05d}.jpg"
                (photos / image_id).write_bytes(jpeg)
                rows.append([image_id, *(int(name in names) for name in CLASSES)])
            print(f"world: {params[split]} {split} photographs", flush=True)
    (HERE / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    with (HERE / "ground_truth.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image_id", *CLASSES])
        writer.writerows(rows)


if __name__ == "__main__":
    main()
