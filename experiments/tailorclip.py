"""TailorCLIP (IJCV 2026): labels of many small crops, images pasted together, a query a class.

    python -m experiments.table1 --only tailorclip

On the frozen teacher's features an adapter and a decoder learn, of images into which a confident
one is pasted, the larger of both images' labels, in two views. The labels are learned too. Small
crops are the pipeline's own local views: it must have run with `cam_boxes: {views: windows,
mean_views: 29}`, the last 16 of which are tiny. Writes `results/table1/tailorclip.json`. Resumes by
epoch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import RandAugment

from experiments.baseline import first_of
from experiments.network import Network, config_of, train_and_judge
from experiments.objectives import LEAST
from experiments.patches import Patches
from experiments.results import Data, aligned, read_data, write_result
from stages.artifacts import CAM_BOXES, GLOBAL_SCORES, LOCAL_SCORES, TEACHER
from stages.images.prefetch import load_global_views, split_batches
from stages.method.objective import Objective
from stages.models.device import device
from stages.models.student import StudentConfig
from stages.models.teacher import Teacher
from stages.runtime.errors import UserError
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.types import Floats
from stages.storage.tables import class_columns, class_values, read_table

NARROW = 16  # the adapter's inner width, a part of the features'
WIDTH, HEADS, LAYERS, FEED = 256, 8, 2, 256  # of the decoder
SURE, MOST = 0.035, 200  # of a class, the surest images may be pasted; published: 200 of 5,717
SCALE = 0.65  # of the sides of the image, those of what is pasted
STRONG, PULL = 0.7, 0.5  # weights of the strong view, and of the labels' own step
WINDOWS, TINY = 29, 16  # local views an image, of which the last ones are a sixth of its area


def run(params: Params, job: Job) -> None:
    data = read_data()
    _ = data.judged  # or refuse, before anything is loaded
    labels = torch.from_numpy(labels_of_crops(data))
    teacher = Teacher(TEACHER, device(), params.global_clip.precision)
    patches = Patches(teacher, embedded=False)
    config = config_of(teacher, params, first_of(params, data, 1.0).config)
    torch.manual_seed(params.seed)
    grid = patches(torch.zeros(1, 3, config.size, config.size)).shape[-1]
    head = Head(patches.width, grid, labels.shape[1])
    network, surest = Pasting(patches, head, config), surest_of(labels)
    network.exemplars = exemplars_of(data.rows.iloc[surest], config.size)
    found = train_and_judge(job, params, data, network, Tailored(labels, network, surest))
    write_result(job, "tailorclip", {"method": "tailorclip", "knows": "clip", **found})


def labels_of_crops(data: Data) -> Floats:
    """(images, classes): the most that CLIP says of the whole image or of one of its tiny crops."""
    boxes, of_boxes = read_table(CAM_BOXES, data.digest, columns=["image_id"])
    if of_boxes["views"] != "windows" or len(boxes) != WINDOWS * len(data.rows):
        raise UserError(
            f"the local views are not {WINDOWS} windows an image: set cam_boxes.views to windows "
            f"and cam_boxes.mean_views to {WINDOWS} in params.yaml and run `dvc repro fuse_labels`,"
            " or use `python -m experiments.table1`, which does so beside"
        )
    images, _ = read_table(GLOBAL_SCORES, data.digest)
    windows, _ = read_table(LOCAL_SCORES, data.digest)
    if class_columns(LOCAL_SCORES, windows) != data.classes:
        raise UserError(f"{LOCAL_SCORES.path} has other classes than the labels: run `dvc repro`")
    scores = class_values(LOCAL_SCORES, windows).reshape(len(data.rows), WINDOWS, -1)
    tiny = scores[:, WINDOWS - TINY :].max(axis=1)
    most: Floats = np.maximum(aligned(images, data.rows), tiny).astype(np.float32)
    return most


class Head(nn.Module):
    """Feature maps (n, features, rows, columns) to logits (n, classes)."""

    def __init__(self, features: int, grid: int, classes: int) -> None:
        super().__init__()
        inner = max(features // NARROW, 8)
        self.adapter = nn.Sequential(
            nn.Conv2d(features, inner, 1), nn.ReLU(), nn.Conv2d(inner, features, 1), nn.ReLU()
        )
        self.into = nn.Sequential(nn.Conv2d(features, WIDTH, 1), nn.BatchNorm2d(WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(WIDTH, grid, grid))
        self.query = nn.Parameter(0.02 * torch.randn(classes, WIDTH))
        layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, FEED, activation=F.leaky_relu, batch_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, LAYERS)
        self.weight = nn.Parameter(0.02 * torch.randn(classes, WIDTH))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, maps: Tensor) -> Tensor:
        """Each class's query is read by a line of its own."""
        adapted = (maps + self.adapter(maps)) / 2
        tokens = (self.into(adapted) + self.place).flatten(2).mT
        found = self.decoder(self.query.expand(len(maps), -1, -1), tokens)
        logits: Tensor = (found * self.weight).sum(dim=-1) + self.bias
        return logits


class Pasting(Network):
    """While it trains, an image is pasted into each, and what is strongly changed is seen beside.

    exemplars (m, 3, s, s) uint8, which may be pasted. Of the latest pass, `pasted` (n,) are those
    that were, and `strong` (n, classes) the logits of the strong view.
    """

    def __init__(self, patches: Patches, head: Head, config: StudentConfig) -> None:
        super().__init__(patches, head, config)
        self.exemplars = torch.empty(0)
        self.pasted, self.strong = torch.empty(0), torch.empty(0)
        self.change = RandAugment()

    def forward(self, views: Tensor) -> Tensor:
        """Logits (n, classes) of the views; of what was made of them, in training."""
        if not self.training:
            return self.logits(views)
        self.pasted = torch.randint(len(self.exemplars), (len(views),))
        both = paste(views, self.exemplars[self.pasted].to(views.device))
        self.strong = self.logits(torch.stack([self.change(one) for one in both]))
        return self.logits(both)


def paste(views: Tensor, exemplars: Tensor) -> Tensor:
    """Views (n, 3, h, w) with an exemplar (n, 3, s, s) each, anywhere within it."""
    pasted, side = views.clone(), exemplars.shape[-1]
    for one, exemplar in zip(pasted, exemplars, strict=True):
        y, x = (int(torch.randint(length - side + 1, ())) for length in one.shape[-2:])
        one[:, y : y + side, x : x + side] = exemplar
    return pasted


class Tailored(Objective):
    """Its three losses, of the labels (images, classes) that crops gave, in [0, 1].

    table: the labels' logits, of their square roots at first, which a step pulls to the student.
    surest: the images that may be pasted, in the order of the network's exemplars.
    """

    def __init__(self, labels: Tensor, network: Pasting, surest: list[int]) -> None:
        super().__init__(labels)
        self.networks = (network,)  # a tuple: the optimiser has it already
        self.surest = surest
        self.table = nn.Parameter(torch.logit(labels.sqrt().clamp(LEAST, 1 - LEAST)))

    def forward(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """Of both views to the larger of two images' labels, and of these to the student."""
        (network,) = self.networks
        pasted = [self.surest[place] for place in network.pasted.tolist()]
        table = torch.maximum(self.table[rows], self.table[pasted])
        targets, said = table.detach().sigmoid(), logits.detach().sigmoid()
        loss = F.binary_cross_entropy_with_logits
        weak, strong = loss(logits, targets), loss(network.strong, targets)
        return weak + STRONG * strong + PULL * loss(table, said)


def surest_of(labels: Tensor) -> list[int]:
    """The images (rows of labels) that are among the surest of a class, in order."""
    count = min(MOST, max(1, round(SURE * len(labels))))
    chosen = labels.topk(count, dim=0).indices
    rows: list[int] = sorted(set(chosen.flatten().tolist()))
    return rows


def exemplars_of(rows: pd.DataFrame, size: int) -> Tensor:
    """The pictures (m, 3, s, s) uint8 of some rows of the index, for views of `size`."""
    side = round(SCALE * size)
    batches = split_batches(range(len(rows)), 64)
    return torch.cat(list(load_global_views(rows, side, batches)))


if __name__ == "__main__":
    declared_by = partial(declaration, "tailorclip", file=Path("experiments/dvc.yaml"))
    main("tailorclip", run, declared_by=declared_by)
