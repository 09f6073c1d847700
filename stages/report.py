"""Stage `report`: everything on one page that needs nothing but a browser.

Reads the small artifacts, and a few photographs for the samples. Writes `data/report/index.html`,
self-contained: no script, no font and no picture from elsewhere. Every number is an artifact's.

    python -m stages.report
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from PIL import Image

from stages import charts
from stages.artifacts import (
    BIAS,
    CAM_BOXES,
    CAM_MAPS,
    GLOBAL_SCORES,
    GROUND_TRUTH,
    INDEX,
    INITIAL_LABELS,
    LOCAL_LABELS,
    LOCAL_SCORES,
    PSEUDO_LABELS,
    REPORT,
    RESULTS,
    class_columns,
    class_values,
    index_digest,
    read_store,
    read_table,
)
from stages.images.decode import read_image
from stages.job import Job, main
from stages.method.types import Floats
from stages.params import Params
from stages.progress import say

TEMPLATE = Path(__file__).with_suffix(".html")
HEAT = np.array([[13, 8, 135], [156, 23, 158], [237, 121, 83], [240, 249, 33]], np.float32)
RESULT_TABLES = ("ladder", "per_class", "precision_recall", "training")
SCORERS = {"teacher": "teacher", "warmup": "after the warm-up", "student": "student"}


def run(params: Params, job: Job) -> None:
    index, _ = read_table(INDEX)
    digest = index_digest(index)
    tables = {
        table.path.stem: read_table(table, digest)[0]
        for table in (
            BIAS, GLOBAL_SCORES, GROUND_TRUTH, INITIAL_LABELS, LOCAL_LABELS,
            PSEUDO_LABELS, CAM_BOXES, LOCAL_SCORES,
        )
    }  # fmt: skip
    tables["index"] = index
    maps = read_store(CAM_MAPS, digest)[0]["map"]
    metrics = json.loads((RESULTS / "metrics.json").read_text())
    results = {name: pd.read_csv(RESULTS / f"{name}.csv") for name in RESULT_TABLES}
    status, split = index["status"], index["split"]
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE.read_text())
    html = page.render(
        counts={
            "train": int(((status == "ok") & (split == "train")).sum()),
            "test": int(((status == "ok") & (split == "test")).sum()),
            "classes": len(tables["bias"]),
            "bad": int((status != "ok").sum()),
        },
        has_truth="mAP" in metrics or "label_mAP" in metrics,
        figures=headline(metrics),
        charts=[*quality_charts(metrics, results), *label_charts(tables, results)],
        **sample_cards(tables, maps, params.report.samples),
    )
    path = job.staging / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    say(f"report: open {REPORT} in a browser")


def headline(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """The few figures on top of the page."""
    facts = metrics["diagnostics"]
    figures = [
        (name, f"{metrics[key]:.1f}")
        for key, name in (
            ("mAP", "mAP of the student"),
            ("teacher_mAP", "mAP of the teacher itself"),
        )
        if key in metrics
    ]
    figures += [
        ("local views an image", f"{facts['views_per_image']:.1f}"),
        ("positives an image, student", f"{facts['positives_per_image']['student']:.2f}"),
        ("teacher and student agree on top", f"{facts['teacher_student_top1_agreement']:.0%}"),
    ]
    return [{"name": name, "value": value} for name, value in figures]


def quality_charts(
    metrics: dict[str, Any], results: dict[str, pd.DataFrame]
) -> list[dict[str, Any]]:
    """What only ground truth can tell; nothing without it."""
    found = []
    ladder = results["ladder"].dropna(subset=["mAP"])
    if len(ladder):
        found.append(
            {
                "id": "ladder",
                "title": "The ladder",
                "text": "How good each label is on the training images, and each classifier on the "
                "test images. Labels and classifiers are judged on different images.",
                "svgs": [charts.ladder(ladder)],
            }
        )
    if "mAP" in metrics:
        columns = {f"{key}_AP": name for key, name in SCORERS.items()}
        table = (
            results["per_class"]
            .rename(columns=columns)
            .melt(["class"], list(columns.values()), var_name="scorer", value_name="AP")
        )
        curves = results["precision_recall"]
        curves = curves[curves["class"] == "all"].replace({"scorer": SCORERS})
        found.append(
            {
                "id": "per-class",
                "title": "Each class",
                "text": "Average precision on the test images, and precision over recall for all "
                "pairs of image and class. A class without a positive has no average precision.",
                "svgs": [
                    charts.per_class(table.dropna(), list(SCORERS.values())),
                    charts.precision_recall(curves, list(SCORERS.values())),
                ],
            }
        )
    return found


def label_charts(
    tables: dict[str, pd.DataFrame], results: dict[str, pd.DataFrame]
) -> list[dict[str, Any]]:
    """What the labels and the training tell of themselves."""
    classes = list(tables["bias"]["class"])
    initial, pseudo = tables["initial_labels"], tables["pseudo_labels"]
    train = initial[["image_id"]]
    raw = train.merge(tables["global_scores"], on="image_id")[classes].to_numpy()
    top = np.eye(len(classes))[raw.argmax(axis=1)]
    counted = {
        "teacher's best guess": top,
        "initial labels from 0.5": class_values(INITIAL_LABELS, initial) >= 0.5,
        "pseudo-labels from 0.5": class_values(PSEUDO_LABELS, pseudo) >= 0.5,
    }
    truth = train.merge(tables["ground_truth"], on="image_id")
    if len(truth):
        counted = {"ground truth": truth[classes].to_numpy() > 0} | counted
    values = {
        "raw": raw,
        "initial": class_values(INITIAL_LABELS, initial),
        "local": class_values(LOCAL_LABELS, tables["local_labels"]),
        "pseudo": class_values(PSEUDO_LABELS, pseudo),
    }
    training = results["training"]
    shown = [
        {
            "id": "bias",
            "title": "The teacher's bias",
            "text": "Mean probability of the teacher's best class, over the images it is sure of "
            "(the paper's Figure 2d; the dashed line is the mean). Labels are divided by it.",
            "svgs": [charts.bias(tables["bias"])],
        },
        {
            "id": "labels",
            "title": "The labels",
            "text": "How the positives are spread over the classes (the paper's Figure 10), and "
            "how often each label value occurs.",
            "svgs": [
                charts.label_counts(positive_shares(counted, classes), list(counted)),
                charts.label_values(_histogram(values), list(values)),
            ],
        },
    ]
    if len(training):
        shown.append(
            {
                "id": "training",
                "title": "Training",
                "text": "Losses, and mean average precision of the training predictions against "
                "the labels trained on. The grey line is the label update, the dashed one "
                "the epoch that was kept.",
                "svgs": [charts.training(training)],
            }
        )
    return shown


def positive_shares(counted: dict[str, Any], classes: list[str]) -> pd.DataFrame:
    """How the positives (images, classes) of each source are spread over the classes."""
    parts = []
    for source, positive in counted.items():
        count = positive.sum(axis=0)
        parts.append(
            pd.DataFrame({"class": classes, "source": source, "share": count / max(count.sum(), 1)})
        )
    return pd.concat(parts)


def _histogram(values: dict[str, Floats], bins: int = 20) -> pd.DataFrame:
    parts = []
    for source, labels in values.items():
        images, edges = np.histogram(labels, bins=bins, range=(0, 1))
        parts.append(
            pd.DataFrame(
                {"source": source, "value": edges[:-1], "end": edges[1:], "images": images}
            )
        )
    return pd.concat(parts)


def sample_cards(tables: dict[str, pd.DataFrame], maps: Floats, samples: int) -> dict[str, Any]:
    """Images of the best, mixed and worst kind, with their maps, boxes and labels (Figure 11).

    A view is right if its class is on the image or, without ground truth, as far as the teacher
    says so. The best images have the greatest share
    of right views, the worst the least.
    """
    boxes, scores, truth = tables["cam_boxes"], tables["local_scores"], tables["ground_truth"]
    known, classes = truth.set_index("image_id") > 0, class_columns(LOCAL_SCORES, scores)
    # a view that asks for no class of ours is of the one that the teacher sees on it
    asked = boxes["class"].where(boxes["class"].isin(classes), _best(scores))
    right = pd.Series(_value_of(scores, list(asked)), index=boxes.index)
    if boxes["image_id"].isin(known.index).any():
        boxes = boxes[boxes["image_id"].isin(known.index)]
        rows = known.loc[boxes["image_id"]].to_numpy()
        columns = known.columns.get_indexer(pd.Index(asked[boxes.index]))
        right = pd.Series(rows[np.arange(len(rows)), columns].astype(float), index=boxes.index)
        text = (
            "Sorted by the share of an image's views whose class is on it (the paper's Figure 11)."
        )
    else:
        text = "Sorted by how much the teacher agrees with the class asked for."
    by_image = right.groupby(boxes["image_id"]).agg(["mean", "size"])
    telling = (
        by_image[by_image["size"] >= min(3, by_image["size"].max())] if len(by_image) else by_image
    )
    best = telling.sort_values("mean", ascending=False, kind="stable").index
    middle = (telling["mean"] - 0.5).abs().sort_values(kind="stable").index
    kinds = {"Best": best, "Mixed": middle, "Worst": best[::-1]}
    shown: set[str] = set()
    groups = []
    for title, ids in kinds.items():
        chosen = [i for i in ids if i not in shown][:samples]
        shown |= set(chosen)
        groups.append({"title": title, "cards": [_card(i, tables, maps, known) for i in chosen]})
    return {"samples": [group for group in groups if group["cards"]], "samples_text": text}


def _best(table: pd.DataFrame) -> pd.Series:
    """Of every row, the name of the class with the greatest value."""
    columns = pd.Index(class_columns(LOCAL_SCORES, table), dtype=object)
    return pd.Series(columns[class_values(LOCAL_SCORES, table).argmax(axis=1)], index=table.index)


def _value_of(table: pd.DataFrame, names: list[str]) -> Floats:
    """Of every row, the value in the column that `names` gives for it."""
    columns = class_columns(LOCAL_SCORES, table)
    values = class_values(LOCAL_SCORES, table)
    return values[np.arange(len(values)), pd.Index(columns).get_indexer(pd.Index(names))]


def _card(
    image_id: str, tables: dict[str, pd.DataFrame], maps: Floats, known: pd.DataFrame
) -> dict[str, Any]:
    row = tables["index"][tables["index"]["image_id"] == image_id].iloc[0]
    image = read_image(str(row["path"]), str(row["sha256"]))
    on = {name for name in known.columns if image_id in known.index and known.loc[image_id, name]}
    own = tables["cam_boxes"][tables["cam_boxes"]["image_id"] == image_id].head(6)
    classes = list(tables["bias"]["class"])
    views = []
    for position, view in zip(own.index, own.to_dict("records"), strict=True):
        p = tables["local_scores"].loc[position, classes].sort_values(ascending=False).head(3)
        views.append(
            {
                "class": view["class"],
                "on": view["class"] in on,
                "photo": _picture(heated(image, maps[position]) if maps.shape[0] else image),
                "left": round(100 * view["x0"] / image.width, 2),
                "top": round(100 * view["y0"] / image.height, 2),
                "width": round(100 * (view["x1"] - view["x0"]) / image.width, 2),
                "height": round(100 * (view["y1"] - view["y0"]) / image.height, 2),
                "guesses": [{"class": c, "p": f"{v:.2f}", "on": c in on} for c, v in p.items()],
            }
        )
    labels = pd.DataFrame(
        {
            name: tables[f"{name}_labels"]
            .set_index("image_id")
            .loc[image_id, classes]
            .astype(float)
            for name in ("initial", "local", "pseudo")
        }
    ).sort_values("pseudo", ascending=False)
    worth = labels[
        (labels["pseudo"] >= 0.3) | labels.index.isin(list(on)) | (labels["initial"] >= 0.3)
    ]
    return {
        "image_id": image_id,
        "photo": _picture(image),
        "views": views,
        "labels": [
            {
                "class": name,
                "on": name in on,
                "width": round(120 * label["pseudo"]),
                **{key: f"{label[key]:.2f}" for key in ("initial", "local", "pseudo")},
            }
            for name, label in worth.iterrows()
        ],
    }


def heated(image: Image.Image, unit_map: Floats) -> Image.Image:
    """The image with a map laid over it, from blue (0) to yellow (1)."""
    heat = Image.fromarray(unit_map.astype(np.float32)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    level = np.clip(np.asarray(heat), 0, 1) * (len(HEAT) - 1)
    channels = [np.interp(level, range(len(HEAT)), HEAT[:, c]) for c in range(3)]
    return Image.blend(image, Image.fromarray(np.stack(channels, -1).astype(np.uint8)), 0.5)


def _picture(image: Image.Image, side: int = 300) -> str:
    """A JPEG as a data URI, no side longer than `side`."""
    small = image.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main("report", run)
