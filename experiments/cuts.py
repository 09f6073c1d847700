"""How good cuts are that know no label, beside other cuts, some of which do.

    python -m experiments.cuts --seeds 0,1,2
    python -m experiments.cuts --seeds 0 --preset photographs --untrained

Writes `results/cuts.csv` (or below `results/photographs`), a line a kind of cut and seed: what the
student's calls on test images come to, in percent; `results/reliability.csv`: of the student's
probabilities the share that is true, before and after they are calibrated; and a chart of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
import typer
from sklearn.metrics import precision_recall_curve

from experiments.ablations import UNTRAINED
from experiments.charts import reliability
from experiments.clone import must_be_judged, prepare, reproduce, seed_list
from stages.artifacts import GROUND_TRUTH, INDEX, PREDICTIONS, PSEUDO_LABELS, THRESHOLDS
from stages.method.cuts import BINS, SHOWN, calibrated, f1_of_each, logits_of
from stages.method.evaluation import align
from stages.runtime.types import Booleans, Floats
from stages.storage.index import index_digest
from stages.storage.tables import Table, read_table

RESULTS = Path("results")
FITTED = UNTRAINED | {"train.epochs": 0, "train.head": "closed_form"}
OWN = "calibrated, as often as expected (the stage thresholds)"
LINE = ["F1", "micro_F1", "precision", "recall", "calls_per_image", "expected_precision"]


class Said(NamedTuple):
    """What a run says of its images, (images, classes) each, by split.

    p: the student's probabilities as it says them; sure: calibrated; truth: 1, 0 or NaN. pseudo: of
    the training images. cuts: of `sure`, (classes,).
    """

    p: dict[str, Floats]
    sure: dict[str, Floats]
    truth: dict[str, Floats]
    pseudo: Floats
    cuts: Floats


def main(
    seeds: Annotated[str, typer.Option(help="By comma.")] = "0,1,2",
    preset: Annotated[
        str, typer.Option(help="Of `ccd preset`, instead of the parameters that are committed.")
    ] = "",
    untrained: Annotated[
        bool, typer.Option("--untrained", help="Windows and fitted heads: nothing is trained.")
    ] = False,
) -> None:
    """Judge every kind of cut with every seed."""
    prepare(preset)
    numbers, results = seed_list(seeds), RESULTS / preset
    must_be_judged(numbers[0])
    lines, parts = [], []
    for seed in numbers:
        said = read(reproduce(seed, FITTED if untrained else {}, "evaluate"))
        for kind, called in kinds(said):
            lines.append({"row": kind, "seed": seed} | judged(said, called))
            print(lines[-1], flush=True)
        for when, p in (("as the student says them", said.p), ("calibrated", said.sure)):
            part = binned(said.truth["test"], p["test"])
            parts.append(part.assign(seed=seed, probabilities=when))
        results.mkdir(exist_ok=True)
        table, reliable = pd.DataFrame(lines).round(2), pd.concat(parts).round(4)
        table.to_csv(results / "cuts.csv", index=False, lineterminator="\n")
        reliable.to_csv(results / "reliability.csv", index=False, lineterminator="\n")
        (results / "reliability.svg").write_text(reliability(reliable))
    print(table.groupby("row", sort=False)[LINE].mean().round(1).to_string())


def read(done: Path) -> Said:
    """What the run in that folder says, of the images whose labels are known."""

    def table(of: Table, index: str | None = None) -> pd.DataFrame:
        return read_table(replace(of, path=done / of.path), index)[0]

    index = table(INDEX)
    digest = index_digest(index)
    predictions, truth = table(PREDICTIONS, digest), table(GROUND_TRUTH, digest)
    cuts = table(THRESHOLDS, digest)
    usable = index.loc[index["status"] == "ok", ["image_id", "split"]]
    known = {
        split: truth[truth["image_id"].isin(usable.loc[usable["split"] == split, "image_id"])]
        for split in ("train", "test")
    }
    if known["train"].empty:
        raise SystemExit("no training image has a label to choose cuts by: see source.labels")
    p = {split: align(predictions, of)[1] for split, of in known.items()}
    by = (cuts["scale"].to_numpy(np.float64), cuts["offset"].to_numpy(np.float64))
    return Said(
        p,
        {split: calibrated(values, *by) for split, values in p.items()},
        {split: of.drop(columns="image_id").to_numpy() for split, of in known.items()},
        align(table(PSEUDO_LABELS, digest), known["train"])[1],
        cuts["threshold"].to_numpy(np.float64),
    )


def kinds(said: Said) -> Iterator[tuple[str, Booleans]]:
    """Calls on the test images, with what made them. The last three look at labels."""
    train, test = said.p["train"], said.p["test"]
    yield "1/2 of what the student says", test >= 0.5
    yield "half of an image's greatest", test >= test.max(axis=1, keepdims=True) / 2
    yield "Otsu's, of each class's logits", logits_of(test) >= [otsu(x) for x in logits_of(train).T]
    share = (said.pseudo >= SHOWN).mean(axis=0)
    yield "as often as pseudo-labels reach 1/2", test >= quantiles(train, share)
    yield "1/2, calibrated", said.sure["test"] >= 0.5
    yield (
        "calibrated, greatest expected F1",
        said.sure["test"] >= [expected_f1_cut(x) for x in said.sure["train"].T],
    )
    yield OWN, said.sure["test"] >= said.cuts
    truth = said.truth["train"]
    yield "as often as is true of training images", test >= quantiles(train, rates(truth))
    yield "best F1 on the labels of training images", test >= best_cuts(train, truth)
    yield "best F1 on the labels of test images", test >= best_cuts(test, said.truth["test"])


def otsu(values: Floats) -> float:
    """The cut that parts values (n,) with the greatest variance between the parts (Otsu 1979)."""
    x = np.sort(values)
    below = np.arange(1, len(x))
    total = np.cumsum(x)
    apart = total[:-1] / below - (total[-1] - total[:-1]) / (len(x) - below)
    best = int(np.argmax(below * (len(x) - below) * apart**2))
    return float((x[best] + x[best + 1]) / 2)


def expected_f1_cut(p: Floats) -> float:
    """The cut of one class that has the greatest F1 by calibrated probabilities (images,)."""
    x = np.sort(p)[::-1]
    expected = 2 * np.cumsum(x) / (np.arange(1, len(x) + 1) + x.sum())
    return float(x[int(expected.argmax())])


def rates(truth: Floats) -> Floats:
    """The share of the judged images that show each class (classes,); 0 of none."""
    judged = (~np.isnan(truth)).sum(axis=0)
    shares: Floats = np.nansum(truth, axis=0) / np.maximum(judged, 1)
    return shares


def quantiles(p: Floats, share: Floats) -> Floats:
    """Of each class the cut (classes,) that `share` (classes,) of the images reach."""
    cuts: Floats = np.array([np.quantile(x, 1 - s) for x, s in zip(p.T, share, strict=True)])
    return cuts


def best_cuts(p: Floats, truth: Floats) -> Floats:
    """Of each class the cut (classes,) of the greatest F1; 1 where no image is known to show it."""
    cuts = np.ones(p.shape[1])
    for c in range(p.shape[1]):
        judged = ~np.isnan(truth[:, c])
        if (truth[judged, c] > 0).any():
            precision, recall, at = precision_recall_curve(truth[judged, c] > 0, p[judged, c])
            f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
            cuts[c] = at[int(f1[:-1].argmax())]
    return cuts


def judged(said: Said, called: Booleans) -> dict[str, float]:
    """What calls on test images come to, and what their precision was expected to be.

    F1: mean over the classes on test images; the others over all pairs at once.
    """
    truth = said.truth["test"]
    known = ~np.isnan(truth)
    calls, there = called & known, truth > 0
    right = (calls & there).sum()
    return {
        "F1": 100 * float(np.nanmean(f1_of_each(truth, called))),
        "micro_F1": 100 * float(2 * right / max(calls.sum() + there.sum(), 1)),
        "precision": 100 * float(right / max(calls.sum(), 1)),
        "recall": 100 * float(right / max(there.sum(), 1)),
        "calls_per_image": float(called.sum(axis=1).mean()),
        "expected_precision": 100 * float(said.sure["test"][calls].mean()),
    }


def binned(truth: Floats, p: Floats) -> pd.DataFrame:
    """Of the pairs in each of BINS equal bins: how many, their mean probability, the true share."""
    known = ~np.isnan(truth)
    values, there = p[known], truth[known] > 0
    of_bin = np.minimum((values * BINS).astype(int), BINS - 1)
    pairs = pd.DataFrame({"bin": of_bin, "said": values, "true": there})
    bins = pairs.groupby("bin")
    return bins.mean().assign(pairs=bins.size()).reset_index()


if __name__ == "__main__":
    typer.run(main)
