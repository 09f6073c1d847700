"""A head of one query a class on frozen features, beside a linear head on the same.

    python -m experiments.queries --seeds 0,1,2
    python -m experiments.queries --seeds 0 --preset photographs

Each class looks at the cells of the feature map that it wants (Query2Label 2021; TailorCLIP 2026),
in place of their mean. The features are those of the student's first weights, the labels those of
thirteen windows, raised to the floor and squared; nothing else is trained. Writes
`results/queries.csv` (or below `results/photographs`), a line a head and seed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Annotated, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from experiments.ablations import UNTRAINED
from experiments.clone import must_be_judged, prepare, reproduce, seed_list
from experiments.label_kinds import WANTED, kinds, read
from experiments.results import judged
from stages.artifacts import STUDENT_INIT
from stages.images.normalise import normalise
from stages.images.prefetch import load_global_views, split_batches
from stages.method.closed_form import Doubles, fit_by_likelihood, logits_of
from stages.models.backbones import BackboneConfig
from stages.models.device import device, move
from stages.models.student import Student, StudentConfig, first_student
from stages.models.weights import load_weights
from stages.runtime.types import Floats
from stages.storage.index import read_index, usable

NAME, RESULTS = "queries", Path("results")
LABELS = "raised to the floor, squared"
FROZEN = {"batch_norm": "frozen", "boost": 1.0, "head": "library"}
WIDTH, HEADS = 128, 4
EPOCHS, BATCH, RATE, DECAY = 30, 64, 1e-3, 1e-2


class Queries(nn.Module):
    """One query a class asks the cells of a map; what it finds is the class's logit."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.into = nn.Linear(features, WIDTH)
        self.query = nn.Parameter(0.02 * torch.randn(classes, WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(3)])
        self.out = nn.Parameter(0.02 * torch.randn(classes, WIDTH))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, cells: Tensor) -> Tensor:
        """Logits (n, classes) of feature maps (n, cells, features)."""
        tokens = self.norms[0](self.into(cells))
        asked = self.query.expand(len(cells), -1, -1)
        found, _ = self.attention(asked, tokens, tokens, need_weights=False)
        found = self.norms[1](asked + found)
        found = self.norms[2](found + self.feed(found))
        logits: Tensor = (found * self.out).sum(dim=-1) + self.bias
        return logits


class Pooled(nn.Module):
    """The same with nothing but the mean of the cells, and a line."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.line = nn.Linear(features, classes)

    def forward(self, cells: Tensor) -> Tensor:
        """Logits (n, classes) of feature maps (n, cells, features)."""
        logits: Tensor = self.line(cells.mean(dim=1))
        return logits


class Cells(NamedTuple):
    """Feature maps (images, 2, cells, features): of the images, and of the mirrored ones."""

    train: Tensor
    test: Tensor


def main(
    seeds: Annotated[str, typer.Option(help="By comma.")] = "0,1,2",
    preset: Annotated[
        str, typer.Option(help="Of `ccd preset`, instead of the parameters that are committed.")
    ] = "",
) -> None:
    """Judge every head with every seed."""
    params = prepare(preset)
    numbers, results = seed_list(seeds), RESULTS / preset
    must_be_judged(numbers[0])
    lines = []
    for seed in numbers:
        done = reproduce(seed, UNTRAINED, *WANTED)
        seen = read(done)
        labels = next(of for name, of in kinds(seen, params.fuse_labels.alpha) if name == LABELS)
        truth = seen.truth["test"]
        fitted = fit_by_likelihood([(seen.features["train"], labels)], len(labels)).head
        scores: dict[str, Floats | Doubles] = {
            "in closed form, of the mean": logits_of(fitted, seen.features["test"])
        }
        with chdir(done):
            cells = cells_of(params.student.input_size)
        for name, kind in (("by gradient, of the mean", Pooled), ("a query a class", Queries)):
            torch.manual_seed(seed)
            scores[name] = trained(kind, cells, torch.from_numpy(labels).float())
        for name, of in scores.items():
            lines.append({"row": name, "seed": seed} | judged(truth, of))
            print(lines[-1], flush=True)
        results.mkdir(exist_ok=True)
        table = pd.DataFrame(lines).round(2)
        table.to_csv(results / f"{NAME}.csv", index=False, lineterminator="\n")
    print(table.drop(columns="seed").groupby("row", sort=False).mean().round(1).to_string())


def cells_of(size: int) -> Cells:
    """The feature maps of the student's first weights, of the project here."""
    index, _ = read_index()
    tensors, first = load_weights(STUDENT_INIT, BackboneConfig)
    how = {"precision": "float32", "size": size, "classes": first.classes or ("",)}
    config = StudentConfig.model_validate(first.model_dump() | FROZEN | how)
    student = first_student(tensors, first, config).for_inference(device()).eval()
    maps = [look(student, usable(index, split), size) for split in ("train", "test")]
    return Cells(*maps)


@torch.inference_mode()
def look(student: Student, rows: pd.DataFrame, size: int) -> Tensor:
    """(images, 2, cells, features) of the index's rows."""
    found, where = [], device()
    batches = split_batches(range(len(rows)), student.batch_size(size))
    for views in load_global_views(rows, size, batches):
        images = normalise(move(views, where), student.config.mean, student.config.std)
        both = [student.backbone(one) for one in (images, images.flip(-1))]
        found.append(torch.stack([one.flatten(2).mT for one in both], dim=1).cpu())
    return torch.cat(found)


def trained(
    kind: Callable[[int, int], nn.Module], cells: Cells, labels: Tensor, epochs: int = EPOCHS
) -> Floats:
    """Logits of the test images by a head that learned the labels (images, classes).

    The features are scaled to a deviation of 1, and mirrored or not at random; AdamW, its rate
    falling as a cosine.
    """
    scale = cells.train.std()
    network = kind(cells.train.shape[-1], labels.shape[1]).train()
    steps = epochs * -(-len(labels) // BATCH)
    optimiser = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(labels)), BATCH):
            side = torch.randint(0, 2, (len(rows),))
            loss = F.binary_cross_entropy_with_logits(
                network(cells.train[rows, side] / scale), labels[rows]
            )
            optimiser.zero_grad()
            torch.autograd.backward([loss])
            optimiser.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        said: Floats = network(cells.test[:, 0] / scale).numpy()
    return said


if __name__ == "__main__":
    typer.run(main)
