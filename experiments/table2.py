"""The paper's Table 2: what each module adds, over several seeds.

python -m experiments.table2            writes results/table2.csv, prints the means
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from experiments.clone import prepare, reproduce

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
    prepare()
    lines = []
    for seed in range(seeds):
        for row, changes in ROWS.items():
            print(f"table2: seed {seed}, {row}", flush=True)
            done = reproduce(seed, changes, "evaluate")
            metrics = json.loads((done / "results/metrics.json").read_text())
            lines.append(
                {"row": row, "seed": seed}
                | {k: metrics[k] for k in ("teacher_mAP", "warmup_mAP", "mAP")}
            )
            pd.DataFrame(lines).to_csv(RESULT, index=False, lineterminator="\n")
    table = pd.DataFrame(lines)
    print(table.pivot(index="row", columns="seed", values="mAP").reindex(list(ROWS)).to_string())
    by_row = table.groupby("row", sort=False)[["teacher_mAP", "mAP"]]
    print(by_row.agg(["mean", "std"]).round(2).to_string())


if __name__ == "__main__":
    typer.run(main)
