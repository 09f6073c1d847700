"""Stage `report`: everything on one page that needs nothing but a browser.

Reads the small artifacts, and a few photographs for the samples. Writes `data/report/index.html`,
self-contained: no script, no font and no picture from elsewhere. Every number is an artifact's.

    python -m stages.report
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined

from stages.artifacts import (
    BIAS,
    CAM_BOXES,
    CAM_MAPS,
    DOUBTS,
    GLOBAL_SCORES,
    GROUND_TRUTH,
    INITIAL_LABELS,
    LOCAL_LABELS,
    LOCAL_SCORES,
    PREDICTIONS,
    PSEUDO_LABELS,
    REPORT,
    RESULTS,
)
from stages.page.cards import sample_groups
from stages.page.sections import Evidence, counts, headline, label_sections, quality_sections
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.storage.arrays import read_store
from stages.storage.index import read_index
from stages.storage.provenance import file_digest, redo
from stages.storage.tables import Table, read_csv, read_table

TEMPLATE = Path(__file__).parent / "page/page.html"


def run(params: Params, job: Job) -> None:
    index, digest = read_index()

    def table(of: Table) -> pd.DataFrame:
        return read_table(of, digest)[0]

    def result(name: str) -> pd.DataFrame:
        return read_csv(RESULTS / f"{name}.csv")

    _, of_results = read_table(PREDICTIONS, digest, columns=["image_id"])
    for name, expected in of_results["files"].items():
        file = DOUBTS if name == DOUBTS.name else RESULTS / name
        if not file.exists() or file_digest(file) != expected:
            raise UserError(f"{file} is not as `evaluate` left it: {redo(file)}")
    evidence = Evidence(
        index=index,
        bias=table(BIAS),
        ground_truth=table(GROUND_TRUTH),
        global_scores=table(GLOBAL_SCORES),
        initial_labels=table(INITIAL_LABELS),
        local_labels=table(LOCAL_LABELS),
        pseudo_labels=table(PSEUDO_LABELS),
        cam_boxes=table(CAM_BOXES),
        local_scores=table(LOCAL_SCORES),
        metrics=json.loads((RESULTS / "metrics.json").read_text()),
        doubts=read_csv(DOUBTS),
        ladder=result("ladder"),
        per_class=result("per_class"),
        precision_recall=result("precision_recall"),
        training=result("training"),
    )
    maps = read_store(CAM_MAPS, digest)[0]["map"]
    samples, sorted_by = sample_groups(evidence, maps, params.report.samples)
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text())
    html = page.render(
        counts=counts(evidence),
        doubts=evidence.doubts.to_dict("records"),
        has_truth="mAP" in evidence.metrics or "label_mAP" in evidence.metrics,
        figures=headline(evidence),
        sections=[*quality_sections(evidence), *label_sections(evidence)],
        samples=samples,
        samples_text=sorted_by,
    )
    path = job.staging / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    say(f"report: open {REPORT} in a browser")


if __name__ == "__main__":
    main("report", run)
