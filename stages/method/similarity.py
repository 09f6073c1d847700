"""Eq. 1-3: CLIP's probabilities of the classes, given a view."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from stages.runtime.types import Floats


def similarities(image_embeddings: Floats, class_embeddings: Floats) -> Floats:
    """Cosine similarities (views, classes) in double precision (Eq. 1).

    image_embeddings: (views, dim), class_embeddings: (classes, dim), of any length > 0.
    """
    images = image_embeddings.astype(np.float64)
    classes = class_embeddings.astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    cosines: Floats = images @ classes.T
    return cosines


def class_probabilities(
    image_embeddings: Floats,
    class_embeddings: Floats,
    temperature: float,
    centre: Floats | float = 0.0,
) -> Floats:
    """Softmax over the classes of the cosine similarities divided by the temperature (Eq. 1, 2).

    centre: subtracted from the similarities of each class (classes,), an extension.
    Returns (views, classes) float32 in [0, 1]; each row sums to 1 (Eq. 3).
    """
    cosines = similarities(image_embeddings, class_embeddings) - centre
    return softmax(cosines / temperature, axis=1).astype(np.float32)


def class_probabilities_in_half(
    image_embeddings: Floats,
    class_embeddings: Floats,
    temperature: float,
    centre: Floats | float = 0.0,
) -> Floats:
    """`class_probabilities` of unit vectors, rounded as the published script rounds on a GPU.

    Vectors, similarities and probabilities are in half precision, so that similarities near 20
    are 1/64 apart and probabilities near 1 become 1; sums are kept in single precision.
    """
    images = np.float16(1 / temperature) * image_embeddings.astype(np.float16)
    classes = class_embeddings.astype(np.float16)
    products = images.astype(np.float32) @ classes.astype(np.float32).T
    rounded_products = products.astype(np.float16).astype(np.float32)
    p = softmax(rounded_products - np.float32(1 / temperature) * centre, axis=1)
    rounded: Floats = p.astype(np.float16).astype(np.float32)
    return rounded


PROBABILITIES = {"double": class_probabilities, "half": class_probabilities_in_half}
