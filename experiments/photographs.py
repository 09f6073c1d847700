"""The ladder on real photographs, over several seeds of training: docs/photographs.md.

    python -m experiments.photographs --seeds 0,1,2

runs `ccd preset photographs`, writes `results/photographs/ladder.csv`, a line a rung and seed, and
its chart, and prints their means. What is finished is kept: the same command goes on from there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from experiments.charts import bars
from experiments.clone import must_be_judged, prepare, reproduce, seed_list
from experiments.results import ENOUGH

NAME = "photographs"
RESULT = Path("results") / NAME / "ladder.csv"
DATA, BESIDE = Path("data") / NAME, Path("../shared/real")


def main(
    seeds: Annotated[str, typer.Option(help="Of the training, by comma.")] = "0,1,2",
    folder: Annotated[
        Path, typer.Option(help="With photos/, labels.csv, classes.txt, teacher/ and student/.")
    ] = DATA,
) -> None:
    """Run the pipeline with every seed, and show what each rung came to."""
    put(folder if folder != DATA or DATA.exists() else BESIDE)
    numbers = seed_list(seeds)
    prepare(NAME)
    must_be_judged(numbers[0])
    parts = []
    for seed in numbers:
        done = reproduce(seed, {}, "evaluate") / "results"
        part = ladder(pd.read_csv(done / "ladder.csv"), pd.read_csv(done / "per_class.csv"))
        part.insert(0, "seed", seed)
        parts.append(part)
        lines = pd.concat(parts, ignore_index=True)
        RESULT.parent.mkdir(exist_ok=True)
        lines.to_csv(RESULT, index=False, lineterminator="\n")
        RESULT.with_suffix(".svg").write_text(chart(lines))
    print(summary(lines).to_string())


def put(folder: Path) -> None:
    """See that `data/photographs` is that folder, or a link to it."""
    if not (folder / "photos").is_dir():
        raise SystemExit(f"{folder} holds no photos/: --folder says where the photographs are")
    if DATA.exists() and not DATA.is_symlink() and folder != DATA:
        raise SystemExit(f"{DATA} is a folder of its own: move it, or leave --folder out")
    if folder != DATA:
        DATA.unlink(missing_ok=True)
        DATA.symlink_to(folder.resolve())


def ladder(rungs: pd.DataFrame, classes: pd.DataFrame) -> pd.DataFrame:
    """The rungs of a run, with the mean over the classes of enough test positives as `common`."""
    common = classes[classes["test_positives"] >= ENOUGH]
    means = {str(rung): round(float(common[f"{rung}_AP"].mean()), 2) for rung in rungs["rung"]}
    return rungs[["rung", "split", "mAP", "micro_AP"]].assign(common=rungs["rung"].map(means))


def chart(lines: pd.DataFrame) -> str:
    """A bar a rung, its mean over the seeds, of the classes with enough positives."""
    row = lines["split"] + " images: " + lines["rung"]
    return bars(lines.assign(row=row, mAP=lines["common"]), list(row.unique()), "mAP")


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation over the seeds of every rung's figures."""
    of_rung = lines.groupby(["rung", "split"], sort=False)[["common", "mAP", "micro_AP"]]
    return of_rung.agg(["mean", "std"]).round(2)


if __name__ == "__main__":
    typer.run(main)
