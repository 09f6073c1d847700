"""Rows e to h: whole processes, as DVC starts them, on a project of made-up photographs."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from ruamel.yaml import YAML

from bench.speed import Row

ROOT = Path(__file__).parents[1]
# but for the report, which needs epochs to show
STAGES = [s for s in YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"] if s != "report"]
STUB: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "image_size": 32, "head_width": 64},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
CLASSES = 80
# a process counts its parent's memory as its own until it has more: so a small one starts it
WATCH = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)
QUIET = {"CCD_DEVICE": "cpu", "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


def no_op(folder: Path, rounds: int) -> Iterator[Row]:
    """Row e: `dvc repro` with nothing to do, against a pipeline of as many empty stages."""
    done = subprocess.run(["dvc", "status", "-q"], cwd=ROOT, check=False)
    if done.returncode:
        yield {"row": "e: not measured: `dvc repro` has something to do", "ratio": math.nan}
        return
    for name, photos in {"of empty stages": False, "of those with the photographs": True}.items():
        empty = folder / f"empty-{photos}"
        lay_out_empty(empty, photos)
        ratios = sorted(repro(ROOT) / repro(empty) for _ in range(rounds))
        yield {
            "row": f"e: no-op `dvc repro` ÷ {name} (time)",
            "ratio": float(np.median(ratios)),
            "least": ratios[0],
            "most": ratios[-1],
            "rounds": rounds,
        }


def lay_out_empty(root: Path, photos: bool) -> None:
    """A pipeline of as many stages as the project has, each with one small file.

    photos: the first makes the demo's photographs, and the second depends on them.
    """
    root.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(["dvc", "init", "-q"], cwd=root, check=True)
    stages = {
        f"stage{n}": {"cmd": f"echo {n} > {n}.txt", "outs": [f"{n}.txt"]}
        | ({"deps": [f"{n - 1}.txt"]} if n else {})
        for n in range(count_stages())
    }
    if photos:
        source = ROOT / "data/demo/photos"
        stages["stage0"] |= {"cmd": f"cp -r {source} photos", "outs": ["photos"]}
        stages["stage1"] |= {"deps": ["photos"]}
    YAML().dump({"stages": stages}, root / "dvc.yaml")
    subprocess.run(["dvc", "repro", "-q"], cwd=root, check=True)


def count_stages() -> int:
    """The stages of a plain `dvc repro` here, those that draw the demo's data among them."""
    files = ("dvc.yaml", "demo/dvc.yaml")
    return sum(len(YAML(typ="safe").load(ROOT / file)["stages"]) for file in files)


def repro(folder: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["dvc", "repro", "-q"], cwd=folder, check=True)
    return time.perf_counter() - began


def growth(folder: Path, counts: tuple[int, ...]) -> Iterator[Row]:
    """Row f: time and memory of every stage but the trainings, which make no epoch, by images."""
    found: dict[str, list[tuple[float, float]]] = {}
    for count in counts:
        root = folder / f"of-{count}"
        lay_out(root, count)
        for stage in STAGES:
            found.setdefault(stage, []).append(run_stage(root, stage))
        shutil.rmtree(root)
    for stage, figures in found.items():
        (_, least), *_, (before, _), (after, most) = figures
        yield {
            "row": f"f: {stage}",
            "exponent": math.log(after / before) / math.log(counts[-1] / counts[-2]),
            "memory": most / least,
            "seconds": [seconds for seconds, _ in figures],
            "GB": [gigabytes for _, gigabytes in figures],
            "images": list(counts),
        }


def resume(folder: Path) -> Iterator[Row]:
    """Row g: what a run computes again after a kill when half of its blocks were done."""
    root = folder / "resume"
    lay_out(root, 4000)
    for stage in ("check", "index", "weights"):
        run_stage(root, stage)
    blocks = 40
    environment = os.environ | QUIET | {"CCD_BLOCK": str(4000 // blocks)}
    command = [sys.executable, "-m", "stages.global_clip"]
    process = subprocess.Popen(command, cwd=root, env=environment, stderr=subprocess.DEVNULL)
    while len(list(root.glob(".ccd/global_clip/*/blocks-of-*/*.npz"))) < blocks // 2:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(root.glob(".ccd/global_clip/*/blocks-of-*/*.npz")))
    again = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=True
    )
    kept = re.search(r"resuming, (\d+) of", again.stderr)
    assert kept is not None
    yield {
        "row": "g: finished blocks computed again after a kill (those in work are lost)",
        "ratio": float(done - int(kept[1])),
        "blocks": blocks,
    }


def ranks(folder: Path, rounds: int) -> Iterator[Row]:
    """Row h: two ranks of one thread against one of two threads, starting them included."""
    root = folder / "ranks"
    lay_out(root, 20000)
    for stage in ("check", "index", "weights"):
        run_stage(root, stage)
    ratios = []
    for _ in range(rounds):
        alone, _ = run_stage(root, "global_clip", OMP_NUM_THREADS="2")
        both, _ = run_stage(root, "global_clip", CCD_DEVICES="2")
        ratios.append(alone / both)
    ratios.sort()
    yield {
        "row": "h: two ranks of one thread ÷ one of two (rate)",
        "ratio": float(np.median(ratios)),
        "least": ratios[0],
        "most": ratios[-1],
        "rounds": rounds,
    }


def lay_out(root: Path, count: int) -> None:
    """The project, `count` small photographs (links to a few files), and an untrained tiny CLIP."""
    from open_clip.model import CLIP

    from stages.models.weights import TeacherNote, save_weights

    for name in ("stages", "dvc.yaml", "params.yaml"):
        source = ROOT / name
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, root / name)
    shutil.copytree(ROOT / "data/none", root / "data/none")
    rng = np.random.default_rng(0)
    kinds = root / "kinds"
    kinds.mkdir()
    for kind in range(64):
        pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(kinds / f"{kind}.jpg", quality=80)
    names = []
    for number in range(count):
        name = f"{'test' if number % 10 == 0 else 'train'}/{number // 1000:05d}/{number:07d}.jpg"
        (root / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(kinds / f"{number % 64}.jpg", root / "photos" / name)
        names.append(name)
    classes = [f"class {number}" for number in range(CLASSES)]
    (root / "classes.txt").write_text("\n".join(classes) + "\n")
    known = rng.integers(0, 2, (count, CLASSES))
    rows = [",".join([n, *map(str, row)]) for n, row in zip(names, known.tolist(), strict=True)]
    (root / "truth.csv").write_text("\n".join(["image_id," + ",".join(classes), *rows]) + "\n")
    model = CLIP(STUB["embed_dim"], STUB["vision_cfg"], STUB["text_cfg"])
    save_weights(root / "teacher/open_clip_model.safetensors", model.state_dict(), TeacherNote())
    config = {"model_cfg": STUB, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (root / "teacher/open_clip_config.json").write_text(json.dumps(config))
    yaml = YAML()
    params = yaml.load(root / "params.yaml")
    params["source"] |= {"root": "photos", "classes": "classes.txt", "labels": "truth.csv"}
    params["teacher"]["checkpoint"] = "teacher"
    params["student"] |= {"input_size": 32, "output_stride": 16}
    params["global_clip"]["view_size"] = params["local_clip"]["view_size"] = 32
    params["cam_boxes"] |= {"input_size": 32, "mean_views": 1.0}
    params["warmup"]["epochs"] = params["train"]["epochs"] = 0
    yaml.dump(params, root / "params.yaml")


def run_stage(root: Path, stage: str, **environment: str) -> tuple[float, float]:
    """Run a stage anew; its seconds, and the most memory that it held, in GB."""
    shutil.rmtree(root / ".ccd" / stage, ignore_errors=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", WATCH, sys.executable, "-m", f"stages.{stage}"],
        cwd=root,
        env=os.environ | QUIET | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{stage} failed: {done.stderr[-2000:]}")
    return time.perf_counter() - began, int(done.stdout) / 2**20
