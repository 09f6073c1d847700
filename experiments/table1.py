"""The paper's Table 1: CCD and the methods it is compared with, over several seeds.

    python -m experiments.table1

writes results/table1.csv and .svg, and results/table1_cdul_labels.csv, how good CDUL's labels are
before and after each update; prints the table.

The published figures are of other photographs and networks: they are there for the order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from experiments.charts import bars
from experiments.clone import must_be_judged, prepare, reproduce, seed_list
from experiments.methods import METHODS, Published
from stages.command import preset
from stages.runtime.params_file import read_yaml

RESULT = Path("results/table1.csv")
CDUL_LABELS = Path("results/table1_cdul_labels.csv")
STAGES = "experiments/dvc.yaml"
LEVELS = {
    "all": "fully supervised",
    "some": "partial labels",
    "one": "single positive",
    "clip": "annotation-free",
}
FREE = LEVELS["clip"]
DATA_SETS = ("VOC12", "VOC07", "COCO", "NUS")
# not run here: published figures alone
QUOTED: dict[tuple[str, str], Published] = {
    (LEVELS["some"], "SARB"): (None, 85.7, 72.5, None),
    (LEVELS["some"], "Chen et al."): (None, 81.5, 68.1, None),
}
CDUL: Published = (88.6, 89.0, 69.2, 44.0)
TILES = {"cam_boxes.views": "grid", "cam_boxes.mean_views": 9.0}  # what CDUL looks at
WINDOWS = TILES | {"cam_boxes.views": "windows"}
BOOST: dict[str, object] = {"cdul.boost": 5.0}
# by the name for --only: its row, where it looks, and its settings
CDULS: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "cdul": ("CDUL", TILES, {}),
    "cdul_boost": ("CDUL + BoostLU", TILES, BOOST),
    "cdul_windows": ("CDUL, tiles that overlap", WINDOWS, {}),
    "cdul_windows_boost": ("CDUL + BoostLU, tiles that overlap", WINDOWS, BOOST),
}
CCD: Published = (90.1, 91.0, 70.3, 44.5)
TRAINING_FREE = {
    "softmax": "CLIP, probabilities",
    "cosine": "CLIP, cosines",
    "tiles_softmax": "CLIP and 3 x 3 tiles, probabilities",
    "tiles_cosine": "CLIP and 3 x 3 tiles, cosines",
    "standardised": "CLIP, cosines standardised",
    "tiles_standardised": "CLIP and 3 x 3 tiles, cosines standardised",
    "discriminant": "a discriminant on CLIP's views",
    "tiles_discriminant": "a discriminant on CLIP's views, and 3 x 3 tiles",
}
# in which recipes differ because their networks and photographs do, not in what they do
NOT_HERE = ("laptop", "instant")  # recommended's with small networks; and what is no CCD
OF_THE_NETWORKS = {"student.arch", "cam_boxes.mean_views"}


def main(
    seeds: Annotated[str, typer.Option(help="By comma.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Some methods, by comma; all of them if empty.")] = "",
) -> None:
    """Train and judge every method with every seed."""
    known = [*METHODS, *CDULS, "training_free", *recipes(), "ccd"]
    methods = only.split(",") if only else known
    for unknown in set(methods) - set(known):
        raise typer.BadParameter(f"{unknown}: one of {', '.join(known)}", param_hint="--only")
    numbers = seed_list(seeds)
    prepare()
    must_be_judged(numbers[0])
    found: list[dict[str, Any]] = []
    qualities: list[pd.DataFrame] = []
    for seed in numbers:
        print(f"table1: seed {seed}", flush=True)
        found += [line | {"seed": seed} for line in measure(seed, methods)]
        for name in (name for name in CDULS if name in methods):
            print(f"table1: seed {seed}, {CDULS[name][0]}", flush=True)
            line, quality = measure_cdul(seed, name)
            found.append(line | {"seed": seed})
            qualities.append(quality)
            pd.concat(qualities).to_csv(CDUL_LABELS, index=False, lineterminator="\n")
        lines = pd.DataFrame(found)
        lines.to_csv(RESULT, index=False, lineterminator="\n")
    rows = lines.assign(row=lines["level"] + ": " + lines["method"])
    RESULT.with_suffix(".svg").write_text(bars(rows, list(dict.fromkeys(rows["row"]))))
    print(summary(lines).to_string())


def measure(seed: int, methods: list[str]) -> list[dict[str, Any]]:
    """The lines of one seed, but for CDUL's."""
    trained = [name for name in METHODS if name in methods]
    targets = [f"{STAGES}:baseline@{name}" for name in trained]
    targets += [f"{STAGES}:training_free"] * ("training_free" in methods)
    targets += ["evaluate"] * ("ccd" in methods)
    lines = []
    if targets:
        done = reproduce(seed, {}, *targets)
        lines += [_line(METHODS[name].title, done, name, METHODS[name].knows) for name in trained]
    if "training_free" in methods:
        free = _result(done, "training_free")
        lines += [_scored(title, free[name]) for name, title in TRAINING_FREE.items()]
    if "ccd" in methods:
        lines.append(_scored("CCD", _metric(done)))
    for name, changes in recipes().items():
        if name in methods:
            lines.append(
                _scored(f"CCD, recipe {name}", _metric(reproduce(seed, changes, "evaluate")))
            )
    return lines


def measure_cdul(seed: int, name: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """CDUL's line of one seed, and how good its labels were at first and after each epoch."""
    title, looks, settings = CDULS[name]
    done = reproduce(seed, looks, f"{STAGES}:cdul", settings=settings)
    quality = _result(done, "cdul")["label_mAP"]
    epochs = {"seed": seed, "row": title, "epoch": range(len(quality)), "label_mAP": quality}
    return _line(title, done, "cdul", "clip"), pd.DataFrame(epochs)


def recipes() -> dict[str, dict[str, Any]]:
    """What each recipe of `ccd preset` would change of the parameters in which they differ."""
    known = read_yaml(preset.HERE / "recipes.yaml")
    flat = {
        name: {
            f"{section}.{key}": value
            for laid in (known["common"], recipe)
            for section, values in laid.items()
            for key, value in values.items()
        }
        for name, recipe in known["recipes"].items()
        if name not in NOT_HERE
    }
    keys = set.union(*(set(values) for values in flat.values())) - OF_THE_NETWORKS
    differing = sorted(key for key in keys if len({str(flat[name][key]) for name in flat}) > 1)
    return {name: {key: values[key] for key in differing} for name, values in flat.items()}


def _line(title: str, done: Path, name: str, knows: str) -> dict[str, Any]:
    return _scored(title, _result(done, name)["mAP"]) | {"level": LEVELS[knows]}


def _scored(title: str, quality: float) -> dict[str, Any]:
    return {"level": FREE, "method": title, "mAP": quality}


def _result(done: Path, name: str) -> Any:
    return json.loads((done / f"results/table1/{name}.json").read_text())


def _metric(done: Path) -> float:
    quality: float = json.loads((done / "results/metrics.json").read_text())["mAP"]
    return quality


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation of every method over the seeds, the published figures beside."""
    of_method = lines.groupby(["level", "method"], sort=False)["mAP"]
    run = of_method.agg(["mean", "std"]).round(2)
    published = {(LEVELS[m.knows], m.title): m.published for m in METHODS.values()}
    published |= {(FREE, "CCD"): CCD, (FREE, "CCD, recipe paper"): CCD, (FREE, "CDUL"): CDUL}
    published |= QUOTED
    quoted = [key for key in QUOTED if key not in run.index]
    table = run.reindex(pd.MultiIndex.from_tuples([*run.index, *quoted], names=run.index.names))
    for column, data_set in enumerate(DATA_SETS):
        figures = [published.get(key, (None,) * 4)[column] for key in table.index]
        table[f"published, {data_set}"] = figures
    return table


if __name__ == "__main__":
    typer.run(main)
