"""Stage `report`: everything on one page that needs nothing but a browser.

Reads the small artifacts, and some photographs for the gallery and the samples. Writes
`data/report/index.html`, self-contained: no script, no font and no picture from elsewhere. Every
number is an artifact's.

    python -m stages.report
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from ruamel.yaml import YAML

from stages.artifacts import (
    ANSWERS,
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
    THRESHOLDS,
)
from stages.page.cards import sample_groups
from stages.page.gallery import KINDS, gallery, lines, said_of_images
from stages.page.sections import (
    Evidence,
    Section,
    answered,
    counts,
    headline,
    label_sections,
    quality_sections,
)
from stages.runtime.errors import UserError
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.storage.arrays import StoredArray, read_store
from stages.storage.index import read_index
from stages.storage.provenance import file_digest, redo
from stages.storage.tables import Table, read_csv, read_table

PAGE = Path(__file__).parent / "page"


def run(params: Params, job: Job) -> None:
    index, digest = read_index()

    def table(of: Table) -> pd.DataFrame:
        return read_table(of, digest)[0]

    def result(name: str) -> pd.DataFrame:
        return read_csv(RESULTS / f"{name}.csv")

    predictions, of_results = read_table(PREDICTIONS, digest)
    for name, expected in of_results["files"].items():
        file = DOUBTS if name == DOUBTS.name else RESULTS / name
        if not file.exists() or file_digest(file) != expected:
            raise UserError(f"{file} is not as `evaluate` left it: {redo(file)}")
    cuts, of_cuts = read_table(THRESHOLDS, digest)
    if of_cuts["student"] != of_results["student"]:
        raise UserError(f"{THRESHOLDS.path} is of another classifier: run `dvc repro`")
    scores, of_scores = read_table(GLOBAL_SCORES, digest)
    evidence = Evidence(
        index=index,
        answers=table(ANSWERS),
        bias=table(BIAS),
        ground_truth=table(GROUND_TRUTH),
        global_scores=scores,
        initial_labels=table(INITIAL_LABELS),
        local_labels=table(LOCAL_LABELS),
        pseudo_labels=table(PSEUDO_LABELS),
        predictions=predictions,
        cuts=cuts,
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
    digests = {"index": digest, "teacher": of_scores["teacher"], "student": of_cuts["student"]}
    path = job.staging / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(evidence, maps, params, digests), encoding="utf-8")
    say(f"report: open {REPORT} in a browser")


def page(of: Evidence, maps: StoredArray, params: Params, digests: dict[str, str]) -> str:
    """The whole page, as HTML. digests: of what it is about, by their names."""
    samples, sorted_by = sample_groups(of, maps, params.report.samples)
    said = said_of_images(of)
    script = (PAGE / "page.js").read_text(encoding="utf-8")
    sections: list[Section] = [*quality_sections(of), *label_sections(of)]
    links = {"gallery": "What the student says", "classes": "Class by class"}
    links |= {each.id: each.title for each in sections} | {"samples": "Local views"}
    engine = Environment(autoescape=True, undefined=StrictUndefined)
    return engine.from_string((PAGE / "page.html").read_text(encoding="utf-8")).render(
        style=(PAGE / "page.css").read_text(encoding="utf-8"),
        script=script,
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        contents=links.items(),
        counts=counts(of),
        doubts=of.doubts.to_dict("records"),
        answers=answered(of),
        has_truth="mAP" in of.metrics or "label_mAP" in of.metrics,
        figures=headline(of),
        gallery=gallery(said, of.classes, params.report.gallery),
        gallery_text="Test images, and some training images whose labels local views changed."
        if counts(of).test
        else "Training images: none were held out.",
        kinds=KINDS,
        lines=lines(said, of),
        sections=sections,
        samples=samples,
        samples_text=sorted_by,
        provenance=digests,
        parameters=parameters_text(params),
    )


def parameters_text(params: Params) -> str:
    """All parameters as YAML."""
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 4096
    yaml.dump(params.model_dump(mode="json"), text)
    return text.getvalue()


if __name__ == "__main__":
    main("report", run)
