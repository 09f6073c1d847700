"""Row i: the teacher's tower as the pipeline runs it, beside ONNX Runtime and beside plain torch.

Each in a process of its own, since how torch's memory and threads behave is set once in each.

python -m bench.engines pipeline FOLDER SIDE BATCH SECONDS    prints images a second
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import typer

from stages.runtime import values

# a convolutional network as laptops use it, and CLIP's own; the side of their views, and the batch
TOWERS = {
    "EfficientNet-Lite2": (260, 32),
    "RN50-quickgelu": (224, 16),
    "RN50-quickgelu, large": (640, 4),
    "ViT-B-16-quickgelu": (224, 16),
}
LITE2 = {
    "embed_dim": 512,
    "vision_cfg": {"timm_model_name": "tf_efficientnet_lite2", "image_size": 260},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
Row = Mapping[str, str | float]


class Engine(StrEnum):
    """What runs a tower."""

    PIPELINE = "pipeline"  # folded, channels last, memory kept
    EXPORTED = "exported"  # the pipeline's, with engine: onnxruntime
    ONNX = "onnx"  # ONNX Runtime, of open_clip's tower
    TORCH = "torch"  # open_clip's tower, channels last


SAID = {
    Engine.PIPELINE: "pipeline",
    Engine.EXPORTED: "pipeline with onnxruntime",
    Engine.ONNX: "ONNX Runtime",
    Engine.TORCH: "plain torch",
}
COMPARED = list(product((Engine.PIPELINE, Engine.EXPORTED), (Engine.ONNX, Engine.TORCH)))


def main(engine: Engine, folder: Path, side: int, batch: int, seconds: float) -> None:
    """Measure one engine."""
    if engine in (Engine.ONNX, Engine.TORCH):
        os.environ.pop("OMP_WAIT_POLICY", None)  # of the stages, before torch is imported
    work: dict[Engine, Callable[[Path, int, int], Callable[[], object]]] = {
        Engine.PIPELINE: pipeline,
        Engine.EXPORTED: partial(pipeline, engine="onnxruntime"),
        Engine.ONNX: onnx,
        Engine.TORCH: plain,
    }
    step = work[engine](folder, side, batch)
    step()
    step()
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        step()
        done += batch
    print(json.dumps(done / took))


def pipeline(
    folder: Path, side: int, batch: int, engine: values.Engine = "torch"
) -> Callable[[], object]:
    """The pipeline's own."""
    import torch

    from stages.models.device import device
    from stages.models.teacher import Teacher

    os.environ["CCD_BATCH"] = str(batch)
    teacher = Teacher(folder, device())
    teacher.use(engine, "global_clip.engine")
    teacher.prepare(side, "side", aspect_kept=False)
    views = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)

    def step() -> object:
        with torch.inference_mode():
            return teacher.embed_inputs(views)

    return step


def plain(folder: Path, side: int, batch: int) -> Callable[[], object]:
    """open_clip's tower in channels last, with nothing else done."""
    import torch

    tower = tower_of(folder, side).to(memory_format=torch.channels_last)
    views = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)

    def step() -> object:
        with torch.inference_mode():
            return tower(views)

    return step


def onnx(folder: Path, side: int, batch: int) -> Callable[[], object]:
    """open_clip's tower, exported, which optimises it, and folds it too."""
    import onnxruntime
    import torch

    torch.backends.mha.set_fastpath_enabled(False)  # which cannot be exported
    graph = folder.with_name(f"{folder.name}-{side}.onnx")
    views = torch.randn(batch, 3, side, side)
    if not graph.exists():
        export: Any = torch.onnx.export
        names = {"input_names": ["views"], "dynamo": False, "opset_version": 17}
        export(tower_of(folder, side), views, graph, **names)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"views": views.numpy()})


def tower_of(folder: Path, side: int) -> Any:
    """open_clip's own, for squares of that side."""
    from bench.speed import at_size
    from stages.models.teacher import empty_model

    tower = empty_model(f"local-dir:{folder}").visual
    return at_size(tower, side) if hasattr(tower, "attnpool") else tower


def compare_engines(folder: Path, rounds: int, seconds: float = 6.0) -> Iterator[Row]:
    """The rows: of each tower the rate of the pipeline over those of the others, in turn."""
    import open_clip

    from bench.made_up import write_teacher

    folder.mkdir(parents=True)
    (folder / "EfficientNet-Lite2.json").write_text(json.dumps(LITE2))
    open_clip.add_model_config(folder)
    for name, (side, batch) in TOWERS.items():
        place = folder / name.partition(",")[0]
        if not place.exists():
            write_teacher(place, name.partition(",")[0])
        measured(Engine.ONNX, place, side, batch, 0.0)  # exports
        rates: dict[Engine, list[float]] = {engine: [] for engine in Engine}
        for _ in range(rounds):
            for engine in Engine:
                rates[engine].append(measured(engine, place, side, batch, seconds))
        for own, other in COMPARED:
            ratios = np.sort(np.array(rates[own]) / np.array(rates[other]))
            yield {
                "row": f"i: {name.partition(',')[0]} at {side}, {SAID[own]} ÷ {SAID[other]}",
                "ratio": float(np.median(ratios)),
                "least": float(ratios[0]),
                "most": float(ratios[-1]),
                "rounds": rounds,
            }


def measured(engine: Engine, folder: Path, side: int, batch: int, seconds: float) -> float:
    """Images a second, in a process of its own."""
    command = [sys.executable, "-m", "bench.engines", engine, str(folder)]
    command += [str(side), str(batch), str(seconds)]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    typer.run(main)
