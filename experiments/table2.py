"""The paper's Table 2 on the demo world: what each module adds, over several seeds.

A seed stands for other photographs, another teacher and another student. Every run is a `dvc repro`
of what is committed, in a clone below `.ccd/` that shares the project's cache: stages that two rows
have in common run once, and a second call runs nothing.

    python -m experiments.table2            writes results/table2.csv, prints the means
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from ruamel.yaml import YAML

CLONE = Path(".ccd/table2")
RESULT = Path("results/table2.csv")
OFF = {"bias.debias": False, "fuse_labels.debias": False}
ROWS: dict[str, dict[str, Any]] = {
    "initial labels only": OFF | {"fuse_labels.alpha": 1.0, "train.consistency": 0.0},
    "+ label update": OFF | {"train.consistency": 0.0},
    "+ label update, debiasing": {"train.consistency": 0.0},
    "+ label update, consistency": OFF,
    "+ all: CCD": {},
}


def main(seeds: Annotated[int, typer.Option(help="How many seeds, from 0.")] = 3) -> None:
    """Measure every row with every seed."""
    _clone()
    lines = []
    for seed in range(seeds):
        for row, changes in ROWS.items():
            print(f"table2: seed {seed}, {row}", flush=True)
            _run({"seed": seed} | changes, {"world.seed": seed, "teacher.seed": seed})
            metrics = json.loads((CLONE / "results/metrics.json").read_text())
            lines.append(
                {"row": row, "seed": seed}
                | {k: metrics[k] for k in ("teacher_mAP", "warmup_mAP", "mAP")}
            )
            pd.DataFrame(lines).to_csv(RESULT, index=False, lineterminator="\n")
    table = pd.DataFrame(lines)
    print(table.pivot(index="row", columns="seed", values="mAP").reindex(list(ROWS)).to_string())
    by_row = table.groupby("row", sort=False)[["teacher_mAP", "mAP"]]
    print(by_row.agg(["mean", "std"]).round(2).to_string())


def _clone() -> None:
    """A clean checkout of HEAD, with the project's own DVC cache."""
    if not CLONE.exists():
        subprocess.run(["git", "clone", "-q", ".", str(CLONE)], check=True)
    for step in (["fetch", "-q", "origin", "HEAD"], ["checkout", "-q", "-f", "FETCH_HEAD"]):
        subprocess.run(["git", *step], cwd=CLONE, check=True)
    cache = Path(".dvc/cache").resolve()
    subprocess.run([*DVC, "cache", "dir", "--local", str(cache)], cwd=CLONE, check=True)


DVC = [sys.executable, "-m", "dvc"]


def _run(method: dict[str, Any], demo: dict[str, Any]) -> None:
    subprocess.run(["git", "checkout", "-q", "-f", "."], cwd=CLONE, check=True)
    for file, changes in (("params.yaml", method), ("data/demo/params.yaml", demo)):
        yaml, path = YAML(), CLONE / file
        content = yaml.load(path)
        for key, value in changes.items():
            *sections, name = key.split(".")
            place = content
            for section in sections:
                place = place[section]
            place[name] = value
        yaml.dump(content, path)
    subprocess.run([*DVC, "repro", "-q", "evaluate"], cwd=CLONE, check=True)


if __name__ == "__main__":
    typer.run(main)
