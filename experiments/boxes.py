"""Boxes of photographs as the teacher sees them: embeddings, as of the pipeline's local views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pandas as pd

from stages.artifacts import TEACHER
from stages.images.crops import CropRule
from stages.models.device import device
from stages.models.embedding import box_views, embed_views
from stages.models.teacher import Teacher
from stages.runtime.params import Params
from stages.runtime.types import Arrays, Floats, Integers

# embeddings (rows, dim) of each of some blocks of boxes
Embed = Callable[[list[range]], Iterator[Arrays]]


def embedder(params: Params, rows: pd.DataFrame, image: Integers, edges: Integers) -> Embed:
    """What embeds boxes of the index's `rows`, a block after the other.

    image: the place in `rows` of each box, those of one image beside each other; edges (boxes, 4):
    in pixels.
    """
    how = params.local_clip
    teacher = Teacher(TEACHER, device(), how.precision)
    teacher.prepare(how.view_size, "local_clip.view_size", aspect_kept=how.aspect == "keep")
    views_of = partial(box_views, rows, image, edges)
    rule = CropRule(how.view_size, how.aspect)
    return lambda blocks: embed_views(views_of, blocks, teacher, rule)


def embed_boxes(params: Params, rows: pd.DataFrame, image: Integers, edges: Integers) -> Floats:
    """Embeddings (boxes, dim), all at once; as `embedder` has them."""
    (seen,) = embedder(params, rows, image, edges)([range(len(edges))])
    embeddings: Floats = seen["embedding"]
    return embeddings
