"""One of the ablations, over several seeds: a table, and a chart of it.

    python -m experiments.ablate table2 --seeds 0,1,2

writes `results/table2.csv`, a line a row and seed, and `results/table2.svg`. What rows have in
common runs once; an interrupted ablation goes on where it was. `experiments/ablations.py` has them,
and what each row changes. With `--preset photographs` the same for the parameters of that preset,
into `results/photographs`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from experiments.ablations import AROUND, EXACT, FIRST, Ablation, Changes, ablations
from experiments.charts import bars, curve, dumbbells
from experiments.clone import DEMO, must_be_judged, prepare, reproduce, seed_list
from stages.artifacts import PSEUDO_LABELS, STUDENT
from stages.runtime.params import Source
from stages.runtime.params_file import PARAMS_FILE, read_yaml

RESULTS = Path("results")
PUBLISHED = Path(__file__).with_name("published_classes.csv")


def main(
    name: Annotated[str, typer.Argument(help="table2, figure3, …: see docs/experiments.md.")],
    seeds: Annotated[str, typer.Option(help="By comma.")] = "0,1,2",
    objects: Annotated[
        str,
        typer.Option(help="For figure3: the objects' boxes, unless the demo's, VOC's or COCO's."),
    ] = "",
    preset: Annotated[
        str, typer.Option(help="Of `ccd preset`, instead of the parameters that are committed.")
    ] = "",
) -> None:
    """Measure every row with every seed."""
    params, numbers, results = prepare(preset), seed_list(seeds), RESULTS / preset
    known = ablations(params, preset)
    if name not in known:
        raise typer.BadParameter(f"{name}: one of {', '.join(known)}")
    ablation = known[name]
    must_be_judged(numbers[0])
    parts: list[pd.DataFrame] = []
    for seed in numbers:
        if ablation.boxes:
            write_boxes(seed, params.source, objects)
        if ablation.classifier is not None:
            keep_classifier(seed, ablation.classifier)
        for row, changes in ablation.rows.items():
            print(f"{name}: seed {seed}, {row}", flush=True)
            done = reproduce(seed, changes, "evaluate")
            part = of_classes(done) if ablation.per_class else of_run(done)
            part.insert(0, "seed", seed)
            part.insert(0, "row", row)
            parts.append(part)
            lines = pd.concat(parts, ignore_index=True)
            results.mkdir(exist_ok=True)
            lines.to_csv(results / f"{name}.csv", index=False, lineterminator="\n")
    (results / f"{name}.svg").write_text(drawn(lines, ablation))
    print(summary(lines, ablation, params.source.kind).to_string())


def write_boxes(seed: int, source: Source, objects: str) -> None:
    """Views of the true boxes, in the clone, for the photographs of this seed."""
    done = reproduce(seed, {}, "index")
    if not objects and Path(source.root).is_relative_to(DEMO):
        objects = str(DEMO / "objects.csv")
    given = ["--objects", objects] if objects else []
    for kind, output in (("around", AROUND), ("exact", EXACT)):
        command = [sys.executable, "-m", "experiments.object_boxes", kind, output]
        if subprocess.run([*command, *given], cwd=done, check=False).returncode:
            raise SystemExit("there are no boxes to look at: object_boxes says why above")


def keep_classifier(seed: int, changes: Changes) -> None:
    """Put the student of a first update aside, in the clone, for a run that goes on from it."""
    done = reproduce(seed, changes, "train")
    shutil.rmtree(done / FIRST, ignore_errors=True)
    shutil.copytree((done / STUDENT).parent, done / FIRST)


def of_run(done: Path) -> pd.DataFrame:
    """A line: how good student, teacher and every label are, in percent; how many labels there are.

    labels_per_image: the sum of an image's pseudo-labels, raised to the power that they are learned
    at, on average.
    """
    metrics = json.loads((done / "results/metrics.json").read_text())
    line = {key: metrics[key] for key in ("teacher_mAP", "warmup_mAP", "mAP")}
    of_labels = metrics.get("label_mAP", {})  # where training images have labels to judge them by
    labels = {f"{name}_label_mAP": value for name, value in of_labels.items()}
    views = {"views_per_image": metrics["diagnostics"]["views_per_image"]}
    power = read_yaml(done / PARAMS_FILE)["train"]["sharpness"]
    pseudo = pd.read_parquet(done / PSEUDO_LABELS.path).drop(columns="image_id")
    mass = {"labels_per_image": round(float((pseudo**power).sum(axis=1).mean()), 2)}
    return pd.DataFrame([line | labels | views | mass])


def of_classes(done: Path) -> pd.DataFrame:
    """A line a class: its bias, and its average precision by the teacher and the student."""
    columns = ["class", "bias", "teacher_AP", "student_AP"]
    return pd.read_csv(done / "results/per_class.csv")[columns]


def summary(lines: pd.DataFrame, ablation: Ablation, kind: str) -> pd.DataFrame:
    """Means and deviations over the seeds, and what was published; classes by their bias.

    kind: of the data set, `source.kind`.
    """
    if ablation.per_class:
        lines = lines.rename(columns={"student_AP": "AP"})
        table = lines.pivot_table(index="class", columns="row", values="AP", sort=False)
        table.insert(0, "bias", lines.groupby("class")["bias"].mean())
        first, second = ablation.rows
        table["gain"] = table[second] - table[first]
        published = pd.read_csv(PUBLISHED, index_col="class").groupby("data_set")
        if kind in published.groups:
            figures = published.get_group(kind).drop(columns="data_set")
            table = table.join(figures.add_prefix("published, "))
        return table.sort_values("bias").round(2)
    of_row = lines.groupby("row", sort=False)["mAP"]
    seeds = lines.pivot_table(index="row", columns="seed", values="mAP", sort=False)
    table = seeds.assign(mean=of_row.mean(), sd=of_row.std()).round(2)
    if ablation.published:
        table["published, VOC12"] = pd.Series(ablation.published)
    return table


def drawn(lines: pd.DataFrame, ablation: Ablation) -> str:
    """The chart that fits."""
    if ablation.per_class:
        return dumbbells(lines, list(ablation.rows))
    if ablation.axis:
        return curve(lines, ablation.axis)
    return bars(lines, list(ablation.rows))


if __name__ == "__main__":
    typer.run(main)
