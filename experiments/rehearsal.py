"""A rehearsal of the paper's setting without its weights or photographs: time and memory.

VOC 2012's layout with drawn JPEGs of its sizes, the real networks with random weights, a preset's
parameters. The labels that come out mean nothing; what each stage costs does. Everything is made in
a clone of what is committed, below `.ccd/rehearsal`.

    python -m experiments.rehearsal --train 12 --test 2 --epochs 1       a laptop: half an hour
    python -m experiments.rehearsal --train 5717 --test 5823 --epochs 8     a GPU, VOC 2012's size
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import numpy as np
import open_clip
import pandas as pd
import torch
import typer
from PIL import Image
from ruamel.yaml import YAML
from safetensors.torch import save_file

from demo.scenes import draw_photo
from stages.command.preset import preset
from stages.sources.class_list import class_list

CLONE = Path(".ccd/rehearsal")
SIZES = ((500, 375), (500, 375), (375, 500), (500, 333), (500, 375), (333, 500))  # as VOC's


def main(
    train: Annotated[int, typer.Option(help="Training images.")] = 12,
    test: Annotated[int, typer.Option(help="Test images.")] = 2,
    epochs: Annotated[int, typer.Option(help="Epochs after the update; two before it.")] = 1,
    recipe: Annotated[str, typer.Option(help="paper, official or recommended.")] = "paper",
) -> None:
    """Run every stage on made-up data, and print what each took."""
    shutil.rmtree(CLONE, ignore_errors=True)
    subprocess.run(["git", "clone", "-q", ".", str(CLONE)], check=True)
    write_voc(CLONE / "data/VOCdevkit/VOC2012", {"train": train, "val": test})
    content = YAML(typ="safe").load(preset("voc12", recipe))
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # its memory would count below
        name = content["teacher"]["model"]
        apart.submit(write_teacher, name, CLONE / "data/teacher.safetensors").result()
    content["teacher"] |= {"pretrained": "none", "checkpoint": "data/teacher.safetensors"}
    content["student"]["weights"] = "random"
    content["train"] |= {"epochs": epochs, "stop": "last_epoch"}
    content["bias"]["entropy_limit"] = 3.0  # random weights are sure of nothing
    YAML().dump(content, CLONE / "params.yaml")
    rows = []
    for stage in YAML(typ="safe").load(CLONE / "dvc.yaml")["stages"]:
        rows.append({"stage": stage, **run(stage)})
        print(f"rehearsal: {rows[-1]}", flush=True)
    views = len(pd.read_parquet(CLONE / "data/cam_boxes.parquet"))
    print(f"{train} + {test} images, {views} local views, {os.cpu_count()} cores")
    print(pd.DataFrame(rows).round(1).to_string(index=False))


def write_voc(folder: Path, splits: dict[str, int]) -> None:
    """Drawn photographs, enlarged, with a class or two each, in the layout of VOC."""
    classes = list(class_list("stages/sources/classes/voc.txt"))
    rng = np.random.default_rng(0)
    main = folder / "ImageSets/Main"
    main.mkdir(parents=True)
    (folder / "JPEGImages").mkdir()
    for year, (split, count) in enumerate(splits.items(), start=2008):
        names = [f"{year}_{number:06d}" for number in range(count)]
        for number, name in enumerate(names):
            image = draw_photo(np.random.default_rng([year, number]))[0]
            image = image.resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)
            image.save(folder / f"JPEGImages/{name}.jpg", quality=92)
        on = {name: rng.choice(classes, rng.integers(1, 3), replace=False) for name in names}
        (main / f"{split}.txt").write_text("\n".join(names) + "\n")
        for label in classes:
            lines = [f"{name} {1 if label in on[name] else -1:2d}" for name in names]
            (main / f"{label}_{split}.txt").write_text("\n".join(lines) + "\n")


def write_teacher(name: str, path: Path) -> None:
    """The teacher's architecture with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(name)
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, path)


def run(stage: str) -> dict[str, float]:
    """Run a stage without DVC; its seconds, and the most memory it held, in GB."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=CLONE)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{stage} failed")
    return {"seconds": time.perf_counter() - started, "GB": usage.ru_maxrss / 2**20}


if __name__ == "__main__":
    typer.run(main)
