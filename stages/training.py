"""The one training loop, of `warmup` and `train`: an epoch at a time, each kept before the next.

Everything random in an epoch follows from the seed, the stage and the epoch's number, so going on
after a kill needs what `epochs.State` holds, and nothing else.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stages import machine, ranks
from stages.epochs import History, State, keep, latest, read_moments, restore_moments
from stages.errors import UserError
from stages.images.augment import normalise, strong, weak
from stages.images.loading import batches_of, global_views, made_ahead
from stages.images.views import read_global_view, stack
from stages.job import Job
from stages.method.average_precision import mean_average_precision, published_training_map
from stages.method.objective import consistency_loss, label_loss
from stages.method.types import Floats
from stages.models.student import Student, logits_of
from stages.models.weights import Note
from stages.params import Optimiser
from stages.progress import meter, say

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MEAN = "mean_student."  # of the names of its tensors, where an epoch is kept


class Recipe(NamedTuple):
    """What an epoch does. Without `consistency` no strong view is made.

    positive: a label at least this large counts as one for the training mAP. average: the decay of
    the mean student that consistency learns from; 0 for the student itself.
    """

    epochs: int
    optimiser: Optimiser
    consistency: float
    jitter: tuple[float, ...]
    positive: float
    average: float = 0.0


class Objective:
    """What the labels ask of the student's logits: binary cross-entropy, in CCD (Eq. 8).

    labels (images, classes). Others derive from it. They may keep tensors of their own, such as
    labels that change; one named `table` is learned with the student.
    """

    def __init__(self, labels: Tensor) -> None:
        self.kept: dict[str, Tensor] = {}
        self.labels = labels

    def loss(self, logits: Tensor, rows: list[int], epoch: int) -> Tensor:
        """Mean over some images and the classes; `epoch` counts from 1."""
        return label_loss(logits, self.labels[rows])

    def after(self, predicted: Tensor, epoch: int) -> None:
        """An epoch has ended, with these logits (images, classes)."""


def train_epochs(
    job: Job,
    student: Student,
    note: Note,
    rows: pd.DataFrame,
    labels: Floats,
    recipe: Recipe,
    moments: dict[str, Tensor],
    seed: int,
    objective: Objective | None = None,
) -> Iterator[State]:
    """Train `student` in place on `labels` (images, classes); yields the state after every epoch.

    rows: of the index, one an image. Starts from the last epoch in the job's scratch, if there is
    one, whose states are yielded first. The two latest epochs are kept there. objective: another
    than CCD's; then `labels` are for the training's mAP alone.
    """
    device = machine.device()
    fabric = ranks.fabric(device, note["precision"])
    prepare_batch_norm(student, note, job.ranks, device)
    objective = objective or Objective(torch.from_numpy(labels.copy()))
    objective.labels = objective.labels.to(device)
    objective.kept = {
        name: value.detach().to(device).requires_grad_(name == "table")
        for name, value in objective.kept.items()
    }
    optimiser = build_optimiser(student, recipe.optimiser, objective.kept.get("table"))
    learned: dict[str, Tensor] = dict(student.named_parameters())
    if "table" in objective.kept:
        learned["table"] = objective.kept["table"]
    network, stepper = fabric.setup(student, optimiser)
    averaged = mean_student(student, recipe)
    if averaged is not None:
        objective.kept |= {f"{MEAN}{n}": value for n, value in averaged.state_dict().items()}
    history: History = []
    resumed = latest(job)
    epochs = 0 if resumed is None else len(resumed.history)
    if over_ranks(fabric, torch.tensor([epochs])) != job.ranks * epochs:
        raise UserError(f"the ranks see different epochs in {job.scratch}: run `dvc repro` again")
    if resumed is not None:
        student.load_state_dict(resumed.weights)
        for name, value in resumed.kept.items():
            objective.kept[name].data.copy_(value)
        moments, history = resumed.moments, resumed.history
        say(f"{job.stage}: resuming after epoch {len(history)} of {recipe.epochs}")
        yield resumed
    restore_moments(optimiser, learned, moments)
    decoded = None
    if len(history) < recipe.epochs:
        decoded = decode_once(rows, note["size"])
    with job.signals():
        for epoch in range(len(history), recipe.epochs):
            title = f"{job.stage} epoch {epoch + 1}/{recipe.epochs}"
            own_seed = _seed(seed, job, epoch)
            torch.manual_seed(own_seed + job.rank)  # of what is random in the network itself
            batches = shared_batches(len(rows), recipe.optimiser.batch, own_seed)
            views = made_ahead(
                partial(training_views, rows[["path", "sha256"]], note["size"], decoded, recipe),
                [(ranks.share(batch, job.rank, job.ranks)[0], salt) for batch, salt in batches],
            )
            losses, predicted = _one_epoch(
                fabric, network, stepper, note, recipe, objective, batches, views, title, rows,
                epoch + 1, averaged,
            )  # fmt: skip
            objective.after(torch.from_numpy(predicted).to(device), epoch + 1)
            quality = 100 * mean_average_precision(labels >= recipe.positive, predicted)
            say(
                f"{job.stage}: epoch {epoch + 1}, label loss {losses[0]:.4f}, consistency loss "
                f"{losses[1]:.4f}, mAP against the labels {quality:.2f}"
            )
            history.append(
                {
                    "epoch": epoch + 1,
                    "label_loss": losses[0],
                    "consistency_loss": losses[1],
                    "train_mAP": quality,
                    "exact_mAP": published_training_map(labels, predicted),
                }
            )
            weights = {
                name: value.detach().cpu().clone() for name, value in student.state_dict().items()
            }
            kept = {name: value.detach().cpu().clone() for name, value in objective.kept.items()}
            state = State(weights, read_moments(optimiser, learned), list(history), kept)
            if job.rank == 0:
                keep(job, state)
            if over_ranks(fabric, torch.tensor([float(job.asked_to_stop)])) > 0:
                job.stop(f"{epoch + 1} of {recipe.epochs} epochs are done and kept")
            yield state


def mean_student(student: Student, recipe: Recipe) -> AveragedModel | None:
    """A running mean of the student's weights and statistics, if consistency learns from one."""
    if recipe.average == 0 or recipe.consistency == 0:
        return None
    average = get_ema_multi_avg_fn(recipe.average)  # type: ignore[no-untyped-call]
    averaged = AveragedModel(student, multi_avg_fn=average, use_buffers=True).eval()
    averaged.n_averaged.fill_(1)  # it is a copy: the first step counts by the decay too
    return averaged


def shared_batches(images: int, size: int, seed: int) -> list[tuple[list[int], int]]:
    """The batches of an epoch, rows in random order, and the seed of each one's augmentation."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(images, generator=rng).tolist()
    return [(list(batch), seed) for batch in batches_of(order, size)]


def training_views(
    files: pd.DataFrame,
    size: int,
    decoded: Tensor | None,
    recipe: Recipe,
    batch: tuple[list[int], int],
) -> tuple[Tensor, Tensor | None]:
    """The weak and, for consistency, the strong views (n, 3, size, size) uint8 of some rows.

    What is random for an image follows from the epoch's seed and its row: not from the batch, nor
    from the process that makes the view.
    """
    rows, seed = batch
    weak_views, strong_views = [], []
    for row in rows:
        if decoded is None:
            path, sha256 = files.iloc[row]
            image = read_global_view(path, sha256, size)[None]
        else:
            image = decoded[row][None]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_mixed(seed, row))
            weak_views.append(weak(image)[0])
            if recipe.consistency > 0:
                strong_views.append(strong(image, recipe.jitter)[0])
    return stack(weak_views), stack(strong_views) if strong_views else None


def decode_once(rows: pd.DataFrame, size: int) -> Tensor | None:
    """All images (n, 3, size, size) uint8, if the machine's memory for that is enough."""
    if len(rows) * 3 * size**2 * ranks.place().beside > machine.cache_bytes():
        return None
    decoded = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    done = 0
    with meter("decode", "images", len(rows)) as progress:
        for views in global_views(rows, size, batches_of(range(len(rows)), 64)):
            decoded[done : done + len(views)] = views
            done += len(views)
            progress.advance(len(views))
    return decoded


def prepare_batch_norm(student: Student, note: Note, processes: int, device: str) -> None:
    """See that the statistics of a batch are those of the whole batch, or none."""
    if not _counts_the_batch(student, note):
        return
    if machine.micro_batch() is not None:
        raise UserError(
            "CCD_MICRO_BATCH parts a batch, whose statistics the student normalises by: set "
            "student.batch_norm to frozen in params.yaml"
        )
    if processes > 1 and not device.startswith("cuda"):
        raise UserError(
            "on several processors the student cannot normalise by the whole batch: set "
            "student.batch_norm to frozen in params.yaml, or CCD_DEVICES to 1"
        )
    if processes > 1:
        convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm
        convert(student)


def _counts_the_batch(student: Student, note: Note) -> bool:
    """Whether an image's logits in training depend on the others of its batch."""
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules())
    return norms and note["batch_norm"] == "batch"


def _one_epoch(
    fabric: Fabric,
    network: Any,
    stepper: Any,
    note: Note,
    recipe: Recipe,
    objective: Objective,
    batches: list[tuple[list[int], int]],
    views: Iterator[tuple[Tensor, Tensor | None]],
    title: str,
    rows: pd.DataFrame,
    epoch: int,
    averaged: AveragedModel | None,
) -> tuple[tuple[float, float], Floats]:
    """One pass over the photographs. `views`: of this rank's share of each batch.

    Returns the mean label and consistency losses, and the logits (images, classes) that the weak
    views had when it was their turn.
    """
    rank, processes = fabric.global_rank, fabric.world_size
    predicted = torch.zeros_like(objective.labels, dtype=torch.float32)
    totals = torch.zeros(2, device=fabric.device)
    apart = _counts_the_batch(network.module, note)
    set_mode(network, note)
    with meter(title, "images", len(rows)) as progress:
        for batch, _ in batches:
            weak_views, strong_views = next(views)
            own, weight = ranks.share(batch, rank, processes)
            counted = rank == 0 or len(own) < len(batch)  # or every rank has looked at them
            parts = batches_of(range(len(weak_views)), machine.micro_batch() or len(weak_views))
            stepper.zero_grad()
            for part in parts:
                here = slice(part[0], part[-1] + 1)
                mine = own[here]
                strong_part = None if strong_views is None else strong_views[here]
                with fabric.no_backward_sync(network, enabled=part is not parts[-1]):
                    logits, strong_logits = forward(
                        fabric, network, note, weak_views[here], strong_part, apart
                    )
                    losses = torch.zeros(2, device=fabric.device)
                    losses[0] = objective.loss(logits, mine, epoch)
                    if strong_logits is not None:
                        taught_by = logits
                        if averaged is not None:
                            with torch.no_grad(), fabric.autocast():
                                taught_by = look(fabric, averaged, note, weak_views[here])
                        losses[1] = consistency_loss(taught_by, strong_logits)
                    losses = losses * len(mine)
                    loss = losses[0] + recipe.consistency * losses[1]  # Eq. 8
                    fabric.backward(loss * weight)
                if counted:
                    totals += losses.detach()
                    predicted[mine] = logits.detach()
                if not torch.isfinite(loss.detach()):
                    some = ", ".join(rows["image_id"].iloc[batch[:5]])
                    raise UserError(
                        f"the loss is {float(loss.detach())} at {some}, …: lower optimiser.lr in "
                        "params.yaml; the epochs before are kept"
                    )
            stepper.step()
            if averaged is not None:
                averaged.update_parameters(network.module)
            progress.advance(len(batch))
    label_total, consistency_total = (over_ranks(fabric, totals) / len(rows)).tolist()
    return (label_total, consistency_total), over_ranks(fabric, predicted).cpu().numpy()


def over_ranks(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum of each rank's `values`; they wait for each other."""
    summed = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed


def forward(
    fabric: Fabric,
    network: Any,
    note: Note,
    weak_views: Tensor,
    strong_views: Tensor | None,
    apart: bool,
) -> tuple[Tensor, Tensor | None]:
    """Logits of both views; in one pass, unless each has statistics of its own (`apart`)."""
    if strong_views is None:
        return look(fabric, network, note, weak_views), None
    if apart:
        weak_logits = look(fabric, network, note, weak_views)
        return weak_logits, look(fabric, network, note, strong_views)
    both = look(fabric, network, note, torch.cat([weak_views, strong_views]))
    return both[: len(weak_views)], both[len(weak_views) :]


def look(fabric: Fabric, network: Any, note: Note, views: Tensor) -> Tensor:
    """Logits (n, classes) of uint8 views (n, 3, …)."""
    on_device = views.to(fabric.device, non_blocking=True)
    found: Tensor = network(normalise(on_device, tuple(note["mean"]), tuple(note["std"])))
    return logits_of(found.float())


def set_mode(network: nn.Module, note: Note) -> None:
    """Training, but for the statistics of batch normalisation if they are frozen."""
    network.train()
    if note["batch_norm"] == "frozen":
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def build_optimiser(
    student: Student, params: Optimiser, table: Tensor | None = None
) -> torch.optim.Adam:
    """Adam, whose rate for the head is `head_lr_factor` times that of the backbone.

    table: learned too, as the head is.
    """
    fast = [*student.head.parameters(), *([] if table is None else [table])]
    return torch.optim.Adam(
        [
            {"params": list(student.backbone.parameters()), "lr": params.lr},
            {"params": fast, "lr": params.lr * params.head_lr_factor},
        ]
    )


def _seed(seed: int, job: Job, epoch: int) -> int:
    return _mixed(seed, zlib.crc32(job.stage.encode()), epoch)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
