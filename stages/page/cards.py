"""Sample cards: a photograph, where the student looked, and what the teacher said (Figure 11)."""

from __future__ import annotations

import base64
import io
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from stages.images.decode import read_image
from stages.page.sections import Evidence
from stages.runtime.types import Floats
from stages.storage.arrays import StoredArray

HEAT = np.array([[13, 8, 135], [156, 23, 158], [237, 121, 83], [240, 249, 33]], np.float32)
VIEWS = 6  # of a card, at most
SHOWN = 0.3  # the least label that is worth a line


class Guess(NamedTuple):
    """A class, its probability, and whether it is on the image as far as is known."""

    name: str
    p: str
    on: bool


class View(NamedTuple):
    """A local view: its class, its map over the photograph, its box in percent, and guesses."""

    name: str
    on: bool
    photo: str
    left: float
    top: float
    width: float
    height: float
    guesses: list[Guess]


class Label(NamedTuple):
    """A class's labels on the way, and how wide its bar is."""

    name: str
    on: bool
    width: int
    initial: str
    local: str
    pseudo: str


class Card(NamedTuple):
    """One training image."""

    image_id: str
    photo: str
    views: list[View]
    labels: list[Label]


class Group(NamedTuple):
    """Cards of one kind."""

    title: str
    cards: list[Card]


def sample_groups(of: Evidence, maps: StoredArray, samples: int) -> tuple[list[Group], str]:
    """Images of the best, mixed and worst kind, and how they were sorted, in words.

    A view is right if its class is on the image or, without ground truth, as far as the teacher
    says so. The best images have the greatest share of right views, the worst the least.
    """
    right, text = right_views(of)
    by_image = right.groupby(of.cam_boxes["image_id"]).agg(["mean", "size"])
    if len(by_image):
        by_image = by_image[by_image["size"] >= min(3, by_image["size"].max())]
    best = by_image.sort_values("mean", ascending=False, kind="stable").index
    middle = (by_image["mean"] - 0.5).abs().sort_values(kind="stable").index
    shown: set[str] = set()
    groups = []
    for title, ids in {"Best": best, "Mixed": middle, "Worst": best[::-1]}.items():
        chosen = [i for i in ids if i not in shown][:samples]
        shown |= set(chosen)
        if chosen:
            groups.append(Group(title, [card(i, of, maps) for i in chosen]))
    return groups, text


def right_views(of: Evidence) -> tuple[pd.Series, str]:
    """How right each view is, by its row in the boxes; and by what that was judged, in words."""
    boxes, scores = of.cam_boxes, of.local_scores[of.classes]
    # a view that asks for no class of ours is of the one that the teacher sees on it
    best = pd.Series(scores.to_numpy().argmax(axis=1), index=boxes.index)
    asked = pd.Series(pd.Index(of.classes).get_indexer(pd.Index(boxes["class"])), boxes.index)
    asked = asked.where(asked >= 0, best)
    truth = of.ground_truth.set_index("image_id")[of.classes] > 0
    known = boxes["image_id"].isin(truth.index)
    if known.any():
        rows = truth.loc[boxes.loc[known, "image_id"]].to_numpy()
        values = rows[np.arange(len(rows)), asked[known]].astype(float)
        text = (
            "Sorted by the share of an image's views whose class is on it (the paper's Figure 11)."
        )
        return pd.Series(values, boxes.index[known]), text
    values = scores.to_numpy()[np.arange(len(scores)), asked]
    return pd.Series(values, boxes.index), (
        "Sorted by how much the teacher agrees with the class asked for."
    )


def card(image_id: str, of: Evidence, maps: StoredArray) -> Card:
    """All that the pipeline has of an image."""
    row = of.index[of.index["image_id"] == image_id].iloc[0]
    image = read_image(str(row["path"]), str(row["sha256"]))
    truth = of.ground_truth[of.ground_truth["image_id"] == image_id]
    on = {name for name in of.classes if len(truth) and truth[name].iloc[0] > 0}
    boxes = of.cam_boxes[of.cam_boxes["image_id"] == image_id].head(VIEWS)
    views = []
    for position, box in zip(boxes.index, boxes.to_dict("records"), strict=True):
        p = of.local_scores.loc[position, of.classes].sort_values(ascending=False).head(3)
        heat = heated(image, maps[position]) if maps.shape[0] else image
        views.append(
            View(
                name=box["class"],
                on=box["class"] in on,
                photo=picture(heat),
                left=round(100 * box["x0"] / image.width, 2),
                top=round(100 * box["y0"] / image.height, 2),
                width=round(100 * (box["x1"] - box["x0"]) / image.width, 2),
                height=round(100 * (box["y1"] - box["y0"]) / image.height, 2),
                guesses=[Guess(str(name), f"{value:.2f}", name in on) for name, value in p.items()],
            )
        )
    return Card(image_id, picture(image), views, labels_of(image_id, of, on))


def labels_of(image_id: str, of: Evidence, on: set[str]) -> list[Label]:
    """The classes that are on an image, or that any label but the local one says are."""
    labels = pd.DataFrame(
        {
            name: table.set_index("image_id").loc[image_id, of.classes].astype(float)
            for name, table in (
                ("initial", of.initial_labels),
                ("local", of.local_labels),
                ("pseudo", of.pseudo_labels),
            )
        }
    ).sort_values("pseudo", ascending=False)
    worth = (labels[["pseudo", "initial"]] >= SHOWN).any(axis=1) | labels.index.isin(list(on))
    return [
        Label(
            name=str(name),
            on=name in on,
            width=round(120 * label["pseudo"]),
            initial=f"{label['initial']:.2f}",
            local=f"{label['local']:.2f}",
            pseudo=f"{label['pseudo']:.2f}",
        )
        for name, label in labels[worth].iterrows()
    ]


def heated(image: Image.Image, unit_map: Floats) -> Image.Image:
    """The image with a map laid over it, from blue (0) to yellow (1)."""
    small = Image.fromarray(unit_map.astype(np.float32))
    heat = np.asarray(small.resize(image.size, Image.Resampling.BILINEAR))
    level = np.clip(heat, 0, 1) * (len(HEAT) - 1)
    channels = [np.interp(level, range(len(HEAT)), HEAT[:, c]) for c in range(3)]
    return Image.blend(image, Image.fromarray(np.stack(channels, -1).astype(np.uint8)), 0.5)


def picture(image: Image.Image, side: int = 300) -> str:
    """A JPEG as a data URI, no side longer than `side`."""
    small = image.copy()
    small.thumbnail((side, side))
    file = io.BytesIO()
    small.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
