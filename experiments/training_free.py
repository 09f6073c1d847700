"""What CLIP says of held-out images without any training, from the whole image and from tiles.

    python -m experiments.table1

Reads the index, the embeddings of images, training views and class names, the teacher and, to
judge, the ground truth. Writes `results/table1/training_free.json`: the average precision of
probabilities, of cosines, as SPARC makes them standardised ones and such with prompts of two
classes, and of a discriminant on the views (as PIAA has it, restated), of the whole image alone and
of its mean with the best of nine tiles. Resumes by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from experiments import sparc
from experiments.boxes import embedder
from experiments.results import judged, read_data, write_result
from stages.artifacts import CLASS_TEXT, GLOBAL_CLIP, LOCAL_CLIP, TEACHER
from stages.method.closed_form import Doubles, fit_by_likelihood, logits_of
from stages.method.labelling import zeroshot
from stages.method.views import box_in_pixels, grid_boxes
from stages.models.device import block_size, device
from stages.models.teacher import Teacher
from stages.runtime.fingerprint import declaration
from stages.runtime.job import Job, main
from stages.runtime.params import Params
from stages.runtime.progress import say
from stages.runtime.resume import in_blocks
from stages.runtime.types import Floats
from stages.sources.class_list import class_list
from stages.storage.arrays import read_store
from stages.storage.index import ID_COLUMNS, read_index
from stages.storage.provenance import parts_of

SIDE = 3  # tiles a side
# scores (n, classes) of embeddings (n, dim)
Scorer = Callable[[Floats], Floats | Doubles]


def run(params: Params, job: Job) -> None:
    data = read_data()
    judge_by = data.judged
    index, _ = read_index(ID_COLUMNS)
    images, _ = read_store(GLOBAL_CLIP, data.digest)
    texts, of_texts = read_store(CLASS_TEXT)
    data.must_be_of(of_texts["classes"])
    clip = zeroshot(params.labels, texts["embedding"][...], of_texts["temperature"])
    places = index["image_id"].isin(data.held_out["image_id"]).to_numpy()
    trained = index["image_id"].isin(data.rows["image_id"]).to_numpy()
    everything = images["embedding"][...]
    views, _ = read_store(LOCAL_CLIP, data.digest)
    taught = np.concatenate([everything[trained], views["embedding"][...]])
    kinds: dict[str, Scorer] = {
        "softmax": clip.probabilities,
        "cosine": clip.similarities,
        "standardised": standardised(clip.similarities, clip.similarities(taught)),
        "discriminant": discriminant(taught, clip.probabilities(taught)),
    }
    kinds["compound"] = with_pairs(params, clip.similarities, taught, everything[trained])
    scores = scorers(kinds, everything[places], embed_tiles(params, job, data.held_out))
    result = {name: judged(judge_by, of) for name, of in scores.items()}
    write_result(job, "training_free", result)
    say(f"training_free: {result}")


def embed_tiles(params: Params, job: Job, rows: pd.DataFrame) -> Floats:
    """Embeddings (images, tiles, dim) of the tiles of the index's `rows`."""
    tiles = SIDE**2
    width, height = (np.repeat(rows[side].to_numpy(), tiles) for side in ("width", "height"))
    edges = box_in_pixels(np.tile(grid_boxes(SIDE), (len(rows), 1)), width, height)
    embed = embedder(params, rows, np.repeat(np.arange(len(rows)), tiles), edges)
    computed = in_blocks(job, len(edges), block_size(device()), "tiles", embed)
    embeddings = np.concatenate(list(computed.of("embedding")))
    return embeddings.reshape(len(rows), tiles, -1)


def standardised(similarities: Scorer, pool: Floats) -> Scorer:
    """Similarities standardised over the classes, then over a pool (as SPARC begins with).

    pool: similarities (views, classes) of training views, whose statistics are kept.
    """

    def by_view(of: Floats) -> Floats:
        return sparc.by_image(of, of)

    seen = by_view(pool)
    mean, deviation = seen.mean(axis=0), seen.std(axis=0)
    return lambda embeddings: (by_view(similarities(embeddings)) - mean) / deviation


def with_pairs(params: Params, similarities: Scorer, pool: Floats, whole: Floats) -> Scorer:
    """SPARC: cosines standardised, with prompts of two classes that images are said to show.

    pool (views, dim): embeddings of training views, whose statistics are kept; whole (images, dim):
    those of training images, which say what is seen together.
    """
    words, teacher = list(class_list(params.source.classes).values()), Teacher(TEACHER, device())
    pairs, prompts = [], []
    for one, other in sparc.pairs_seen(similarities(whole)):
        both = f"{words[one]} and {words[other]}"
        said = [template.replace("{}", both) for template in params.class_text.templates]
        if not any(teacher.too_long(prompt) for prompt in said):
            pairs.append((one, other))
            prompts.append(teacher.embed_class(said).numpy())
    text = np.array(prompts).reshape(len(prompts), pool.shape[1])
    score = sparc.fit(similarities(pool), pool @ text.T, pairs)
    return lambda embeddings: score(similarities(embeddings), embeddings @ text.T)


def discriminant(views: Floats, p: Floats) -> Scorer:
    """Probabilities (n, classes) of embeddings (n, dim), by a head that is fitted to views.

    views: (views, dim), and p: what the text says of them, whose squares are learned, so that
    doubtful ones count less.
    """
    head = fit_by_likelihood([(views.astype(np.float32), p.astype(np.float32) ** 2)], len(p)).head

    def score(embeddings: Floats) -> Doubles:
        found: Doubles = expit(logits_of(head, embeddings))
        return found

    return score


def scorers(kinds: Mapping[str, Scorer], whole: Floats, tiles: Floats) -> dict[str, Floats]:
    """Scores (images, classes) by name, of each kind of score of unit vectors (n, dim).

    whole (images, dim), tiles (images, tiles, dim).
    """
    found = {}
    for name, score in kinds.items():
        found[name] = score(whole)
        best = np.empty_like(found[name])
        for part in parts_of(len(whole)):
            some = tiles[part]
            of_tiles = score(some.reshape(-1, some.shape[-1])).reshape(*some.shape[:2], -1)
            best[part] = of_tiles.max(axis=1)
        found[f"tiles_{name}"] = (found[name] + best) / 2
    return found


if __name__ == "__main__":
    declared_by = partial(declaration, "training_free", file=Path("experiments/dvc.yaml"))
    main("training_free", run, declared_by=declared_by)
