"""The paper's Table 1: CCD and the methods it is compared with, over several seeds.

    python -m experiments.table1

writes results/table1.csv and .svg, and results/table1_cdul_labels.csv, how good CDUL's labels are
before and after each update (with `--preset photographs`, below results/photographs); prints the
table.

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
from experiments.methods import METHODS, UNPUBLISHED, Published
from experiments.results import ENOUGH
from experiments.system import SYSTEMS
from stages.command import preset
from stages.runtime.params_file import read_yaml

RESULTS = Path("results")
RESULT, CDUL_LABELS = "table1.csv", "table1_cdul_labels.csv"
STAGES = "experiments/dvc.yaml"
LEVELS = {
    "all": "fully supervised",
    "some": "partial labels",
    "one": "single positive",
    "clip": "annotation-free",
}
FREE = LEVELS["clip"]
DATA_SETS = ("VOC12", "VOC07", "COCO", "NUS")
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
# where TailorCLIP looks
TINY = {"cam_boxes.views": "windows", "cam_boxes.mean_views": 29.0}
TAILORED = "TailorCLIP"
TRAINING_FREE = {
    "softmax": "CLIP, probabilities",
    "cosine": "CLIP, cosines",
    "tiles_softmax": "CLIP and 3 x 3 tiles, probabilities",
    "tiles_cosine": "CLIP and 3 x 3 tiles, cosines",
    "standardised": "CLIP, cosines standardised",
    "tiles_standardised": "CLIP and 3 x 3 tiles, cosines standardised",
    "compound": "SPARC, pairs of classes",
    "tiles_compound": "SPARC, pairs of classes, and 3 x 3 tiles",
    "discriminant": "a discriminant on CLIP's views",
    "tiles_discriminant": "a discriminant on CLIP's views, and 3 x 3 tiles",
}
PATCHWISE = {
    "patches": "CLIP's patches, the best one",
    "piaa": "PIAA as published",
    "piaa_restated": "PIAA restated",
    "tagclip": "TagCLIP's words and second look",
}
# without training: what is published of other networks, by what is run here
ELSEWHERE: dict[str, Published] = {
    "SPARC, pairs of classes": (None, 88.7, 68.0, 47.5),
    "PIAA as published": (92.2, 92.5, 73.2, 50.6),
    "TagCLIP's words and second look": (90.8, 91.2, 70.0, 38.7),
    TAILORED: (90.9, None, None, None),
}
# by the name for --only: what a stage without training says, and the row of each
UNTRAINED = {"training_free": TRAINING_FREE, "patchwise": PATCHWISE}
# its search of a threshold never arrives with few images
FIVE_VIEWS = {"cam_boxes.selection": "quantile", "cam_boxes.mean_views": 5.0}
# in which recipes differ because their networks and photographs do, not in what they do
NOT_HERE = ("laptop", "instant")  # recommended's with small networks; and what is no CCD
OF_THE_NETWORKS = {"student.arch", "cam_boxes.mean_views"}


def main(
    seeds: Annotated[str, typer.Option(help="By comma.")] = "0,1,2",
    only: Annotated[str, typer.Option(help="Some methods, by comma; all of them if empty.")] = "",
    preset: Annotated[
        str, typer.Option(help="Of `ccd preset`, instead of the parameters that are committed.")
    ] = "",
) -> None:
    """Train and judge every method with every seed."""
    known = [*METHODS, *SYSTEMS, *CDULS, "tailorclip", *UNTRAINED, *recipes(), "ccd"]
    methods = only.split(",") if only else known
    for unknown in set(methods) - set(known):
        raise typer.BadParameter(f"{unknown}: one of {', '.join(known)}", param_hint="--only")
    numbers, results = seed_list(seeds), RESULTS / preset
    prepare(preset)
    must_be_judged(numbers[0])
    results.mkdir(exist_ok=True)
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
            labels = pd.concat(qualities)
            labels.to_csv(results / CDUL_LABELS, index=False, lineterminator="\n")
        lines = pd.DataFrame(found)
        lines.to_csv(results / RESULT, index=False, lineterminator="\n")
    rows = lines.assign(row=lines["level"] + ": " + lines["method"])
    chart = bars(rows, list(dict.fromkeys(rows["row"])))
    (results / RESULT).with_suffix(".svg").write_text(chart)
    print(summary(lines).to_string())


def measure(seed: int, methods: list[str]) -> list[dict[str, Any]]:
    """The lines of one seed, but for CDUL's."""
    trained = [name for name in METHODS if name in methods]
    systems = [name for name in SYSTEMS if name in methods]
    targets = [f"{STAGES}:baseline@{name}" for name in trained]
    targets += [f"{STAGES}:system@{name}" for name in systems]
    targets += [f"{STAGES}:{name}" for name in UNTRAINED if name in methods]
    targets += ["evaluate"] * ("ccd" in methods)
    lines = []
    if targets:
        done = reproduce(seed, {}, *targets)
        lines += [_scored("CCD", _metric(done))] * ("ccd" in methods)
        lines += [_line(METHODS[name].title, done, name, METHODS[name].knows) for name in trained]
        lines += [_line(SYSTEMS[name].title, done, name, SYSTEMS[name].knows) for name in systems]
    for name in (name for name in UNTRAINED if name in methods):
        free = _result(done, name)
        lines += [_scored(title, free[kind]) for kind, title in UNTRAINED[name].items()]
    if "tailorclip" in methods:
        looked = reproduce(seed, TINY, f"{STAGES}:tailorclip")
        lines.append(_line(TAILORED, looked, "tailorclip", "clip"))
    for name, changes in recipes().items():
        if name in methods:
            done = reproduce(seed, changes, "evaluate")
            lines.append(
                _scored(f"CCD, recipe {name.replace('_five', ', five views')}", _metric(done))
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
    """What each recipe of `ccd preset` would change of the parameters in which they differ; and
    `official` with as many views as the others.
    """
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
    found = {name: {key: values[key] for key in differing} for name, values in flat.items()}
    return found | {"official_five": found["official"] | FIVE_VIEWS}


def _line(title: str, done: Path, name: str, knows: str) -> dict[str, Any]:
    return _scored(title, _result(done, name)) | {"level": LEVELS[knows]}


def _scored(title: str, found: dict[str, float]) -> dict[str, Any]:
    measured = {key: found.get(key) for key in ("mAP", "common", "micro_AP")}
    return {"level": FREE, "method": title} | measured


def _result(done: Path, name: str) -> Any:
    return json.loads((done / f"results/table1/{name}.json").read_text())


def _metric(done: Path) -> dict[str, float]:
    """How good the pipeline's student is, as the methods are judged."""
    quality = json.loads((done / "results/metrics.json").read_text())
    classes = pd.read_csv(done / "results/per_class.csv")
    common = classes.loc[classes["test_positives"] >= ENOUGH, "student_AP"]
    found = {"mAP": float(quality["mAP"]), "micro_AP": float(quality["micro_AP"])}
    return found | ({"common": round(float(common.mean()), 2)} if len(common) else {})


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """Mean and deviation of every method over the seeds, the published figures beside."""
    of_method = lines.groupby(["level", "method"], sort=False)["mAP"]
    run = of_method.agg(["mean", "std"]).round(2)
    published = {(LEVELS[m.knows], m.title): m.published for m in METHODS.values()}
    published |= {(LEVELS[s.knows], s.title): s.published for s in SYSTEMS.values()}
    published |= {(FREE, title): figures for title, figures in ELSEWHERE.items()}
    published |= {(FREE, "CCD"): CCD, (FREE, "CCD, recipe paper"): CCD, (FREE, "CDUL"): CDUL}
    table = run.copy()
    for column, data_set in enumerate(DATA_SETS):
        figures = [published.get(key, UNPUBLISHED)[column] for key in table.index]
        table[f"published, {data_set}"] = figures
    return table


if __name__ == "__main__":
    typer.run(main)
