"""DVC stage `teacher`: train a tiny CLIP on drawn image-caption pairs.

It plays the part of the published CLIP, which cannot be shipped: open_clip's own classes (a
ModifiedResNet tower with attention pooling, a text transformer over the ordinary BPE vocabulary),
saved as an open_clip `local-dir`. It has never seen a photograph of the demo's user.

    python -m demo.teacher
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip import ClipLoss, SimpleTokenizer
from open_clip.model import CLIP
from ruamel.yaml import YAML
from safetensors.torch import save_file
from torch import Tensor

from demo.scenes import draw_web_pair
from demo.shapes import CLASSES, SIDE, draw_background, draw_object, finish
from stages.runtime.machine import keep_memory

PARAMS = Path("demo/params.yaml")
OUTPUT = Path("data/demo")
VOCABULARY = 49408  # of open_clip's SimpleTokenizer; the end-of-text token has the highest id
MODEL: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "head_width": 64},
    "text_cfg": {
        "context_length": 20,
        "vocab_size": VOCABULARY,
        "width": 64,
        "heads": 4,
        "layers": 2,
    },
}
MEAN, STD = [0.5, 0.5, 0.5], [0.25, 0.25, 0.25]
BATCH = 64


def web_pair(seed: int, number: int) -> tuple[np.ndarray, str]:
    image, caption = draw_web_pair(np.random.default_rng([seed, 2, number]))
    return np.asarray(image), caption


def single_object(seed: int, number: int) -> np.ndarray:
    """A held-out image of one object, of class `number` modulo the classes: for the gate."""
    rng = np.random.default_rng([seed, 3, number])
    canvas = draw_background(rng)
    side = rng.uniform(0.35, 0.9) * SIDE
    draw_object(canvas, CLASSES[number % len(CLASSES)], side, (SIDE / 2, SIDE / 2), rng)
    return np.asarray(finish(canvas, rng))


def augment(images: Tensor, zoom: tuple[float, float], blur: float, rng: torch.Generator) -> Tensor:
    """Random windows of uint8 `images` (n, 3, 128, 128) as normalised floats (n, 3, 64, 64).

    A window spans `zoom` of the side, its aspect varies by 15 %, half are mirrored; a share `blur`
    of the batches loses detail as a small crop does that is enlarged.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(len(images), generator=rng) * (high - low) + low

    size, aspect = uniform(*zoom), uniform(-0.15, 0.15).exp()
    mirror = (uniform(0, 1) < 0.5).float() * 2 - 1
    reach = (1 - size).abs()
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = size * aspect.sqrt() * mirror, size / aspect.sqrt()
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * reach, uniform(-1, 1) * reach
    side = MODEL["vision_cfg"]["image_size"]
    grid = F.affine_grid(theta, [len(images), 3, side, side], align_corners=False)
    views = F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False)
    if torch.rand((), generator=rng) < blur:
        small = int(torch.randint(20, 49, (), generator=rng))
        views = F.interpolate(views, size=small, mode="bilinear", antialias=True)
        views = F.interpolate(views, size=side, mode="bilinear")
    return normalise(views)


def normalise(images: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((images / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def schedule(cycles: list[dict[str, Any]], steps: int) -> Iterator[tuple[dict[str, Any], float]]:
    """One (cycle, learning rate) a step: a short rise, then a cosine, once a cycle."""
    for cycle in cycles:
        total = cycle["epochs"] * steps
        for step in range(total):
            rise = min(1.0, (step + 1) / 60)
            yield cycle, cycle["lr"] * rise * 0.5 * (1 + math.cos(math.pi * step / total))


def train(images: Tensor, tokens: Tensor, params: dict[str, Any]) -> CLIP:
    """Contrastive training of the tiny CLIP; returns it in evaluation mode.

    Only the words that occur are trained: the vocabulary is packed while training and spread over
    the full table afterwards, where a word never seen keeps a small random vector.
    """
    torch.manual_seed(params["seed"])
    rng = torch.Generator().manual_seed(params["seed"])
    # the words come sorted, so that end-of-text keeps the highest number
    words, packed = torch.unique(tokens, return_inverse=True)
    text_cfg = MODEL["text_cfg"] | {"vocab_size": len(words)}
    model = CLIP(MODEL["embed_dim"], MODEL["vision_cfg"], text_cfg)
    for name, parameter in model.visual.named_parameters():
        if name.endswith("bn3.weight") and name.startswith("layer"):
            torch.nn.init.ones_(parameter)  # open_clip's zero cannot be unlearnt in this few steps
    model = model.to(memory_format=torch.channels_last).train()
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimiser = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    loss_of, losses = ClipLoss(), []
    steps = len(images) // BATCH
    for step, (cycle, lr) in enumerate(schedule(params["cycles"], steps)):
        if step % steps == 0:
            order = torch.randperm(len(images), generator=rng)
        batch = order[step % steps * BATCH :][:BATCH]
        views = augment(images[batch], cycle["zoom"], cycle["blur"], rng)
        loss = loss_of(*model(views, packed[batch]))
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        if (step + 1) % steps == 0:
            print(
                f"teacher: epoch {(step + 1) // steps}, loss {np.mean(losses[-steps:]):.3f}",
                flush=True,
            )
    width = MODEL["text_cfg"]["width"]
    table = torch.randn(VOCABULARY, width, generator=rng) * 0.02
    table[words] = model.token_embedding.weight.detach()
    model.token_embedding = torch.nn.Embedding(VOCABULARY, width, _weight=table)
    return model.eval()


@torch.inference_mode()
def single_object_accuracy(model: CLIP, tokenizer: SimpleTokenizer, seed: int, count: int) -> float:
    """Share of held-out one-object images whose best class is the right one."""
    texts = model.encode_text(
        tokenizer([f"a photo of the {name}" for name in CLASSES]), normalize=True
    )
    images = torch.from_numpy(np.stack([single_object(seed, i) for i in range(count)]))
    views = F.interpolate(
        images.permute(0, 3, 1, 2).float(), size=64, mode="bilinear", antialias=True
    )
    best = (model.encode_image(normalise(views), normalize=True) @ texts.T).argmax(dim=1)
    return float((best == torch.arange(count) % len(CLASSES)).float().mean())


def main() -> None:
    params = YAML(typ="safe").load(PARAMS)["teacher"]
    with ProcessPoolExecutor() as pool:
        pairs = list(
            pool.map(partial(web_pair, params["seed"]), range(params["pairs"]), chunksize=100)
        )
    images = torch.from_numpy(np.stack([image for image, _ in pairs])).permute(0, 3, 1, 2)
    tokenizer = SimpleTokenizer(context_length=MODEL["text_cfg"]["context_length"])
    keep_memory()
    model = train(images, tokenizer([caption for _, caption in pairs]), params)
    accuracy = single_object_accuracy(model, tokenizer, params["seed"], 600)
    print(f"teacher: names {accuracy:.1%} of held-out single objects", flush=True)
    if accuracy < params["gate"]:
        raise SystemExit(
            f"teacher: {accuracy:.3f} of held-out single objects named, fewer than teacher.gate "
            f"{params['gate']} in {PARAMS}: too weak to distil from. Train it longer."
        )
    folder = OUTPUT / "checkpoint"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    config = {"model_cfg": MODEL, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
