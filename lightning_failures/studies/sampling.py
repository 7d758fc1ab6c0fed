"""What to ask: classes, features and images of each question, as indices.

Source: Wong et al. (ICML 2021), section 5, for simulation and matching; Singla et al. (CVPR 2021), section 5, for the
classes and features whose pictures are described.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.errors import DataError

FEATURES = 5
"""Features that a simulation shows."""

TOP_IMAGES = 5
"""Images that show a feature."""


@dataclass(frozen=True, eq=False)
class Simulation:
    """One question on which image a layer gives a class.

    Attributes:
        class_index: The class, which is not named.
        features: (F,) int64, features that the class uses.
        weights: (F,) float64, their weights for standardized features.
        shown: (F, T) int64, rows of the images that activate each feature most (least, for a negative weight).
        options: (3,) int64, rows of the images to choose from.
        right: Index of the option to which the layer gives the class most probably.
    """

    class_index: int
    features: IntArray
    weights: FloatArray
    shown: IntArray
    options: IntArray
    right: int


def simulations(
    weight: Any,
    bias: Any,
    features: Any,
    *,
    count: int,
    n_features: int = FEATURES,
    top_images: int = TOP_IMAGES,
    seed: int = 0,
) -> list[Simulation]:
    """Draw questions on which of three images a linear layer gives a class.

    The features are drawn at random from those that the class uses. Of the images, one is among the tenth with the
    highest probability of the class, one from the middle and one among the lowest tenth, all by this layer.

    Args:
        weight: (K, D) weights for raw features.
        bias: (K,).
        features: (N, D) raw features of the images that can be shown.
        count: Number of questions.
        n_features: Features that a question shows; fewer if the class uses fewer.
        top_images: Images that show a feature.
        seed: Seed of the draw.

    Raises:
        DataError: There are too few images, or no class uses a feature.
    """
    x, w, b = (np.asarray(one, dtype=np.float64) for one in (features, weight, bias))
    n = len(x)
    if n < max(3 * top_images, 30):
        raise DataError(f"A simulation needs at least {max(3 * top_images, 30)} images that can be shown, got {n}.")
    used = np.flatnonzero((w != 0).any(1))
    if not len(used):
        raise DataError("No class of the layer uses a feature, so there is nothing to simulate.")
    std = x.std(0)
    probability = _softmax(x @ w.T + b)
    rng = np.random.default_rng(seed)
    found = []
    for class_index in _cycled(used, count, rng):
        candidates = np.flatnonzero((w[class_index] != 0) & (std > 0))
        if not len(candidates):
            continue
        chosen = rng.permutation(candidates)[:n_features]
        weights = w[class_index, chosen] * std[chosen]
        order = np.argsort(probability[:, class_index], kind="stable")
        tenth = max(1, n // 10)
        middle = slice((n - tenth) // 2, (n - tenth) // 2 + tenth)
        options = np.array([rng.choice(order[-tenth:]), rng.choice(order[middle]), rng.choice(order[:tenth])])
        places = rng.permutation(3)
        found.append(
            Simulation(
                int(class_index),
                chosen,
                weights,
                _most_active(x, chosen, weights, top_images, without=options),
                options[places],
                int(np.flatnonzero(places == 0)[0]),
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class Matching:
    """One question on which patterns an image of an error shows.

    Attributes:
        row: Row of the image.
        features: (3,) int64: the problematic feature of the predicted class, the feature with the largest contribution
            to the true class, and a random one.
        shown: (3, T) int64, rows of the images that show each feature.
    """

    row: int
    features: IntArray
    shown: IntArray


MATCH_KINDS = ("problematic", "true class", "random")
"""What the features of a :class:`Matching` are, in this order."""


def matchings(
    weight: Any,
    features: Any,
    labels: Any,
    errors: Any,
    problematic: Any,
    *,
    count: int,
    top_images: int = TOP_IMAGES,
    seed: int = 0,
) -> list[Matching]:
    """Draw errors with the patterns to compare them with.

    Args:
        weight: (K, D) weights for raw features.
        features: (N, D) raw features of the images that can be shown.
        labels: (N,) int64.
        errors: (E,) int64, rows of errors, as ``problematic_features(...).ids``.
        problematic: (E,) int64, the problematic feature of each, as ``problematic_features(...).feature``.
        count: Number of errors.
        top_images: Images that show a feature.
        seed: Seed of the draw.
    """
    x, w = (np.asarray(one, dtype=np.float64) for one in (features, weight))
    y, rows, worst = (np.asarray(one, dtype=np.int64) for one in (labels, errors, problematic))
    rng = np.random.default_rng(seed)
    used = np.flatnonzero((w != 0).any(0) & (x.std(0) > 0))
    if len(used) < 3:
        raise DataError(f"A matching needs a layer that uses at least 3 features, got {len(used)}.")
    found = []
    for place in rng.permutation(len(rows))[:count]:
        row = rows[place]
        contribution = w[y[row]] * x[row]
        contribution[worst[place]] = -np.inf  # another pattern than the first
        best = int(contribution.argmax())
        others = used[~np.isin(used, [worst[place], best])]
        if not len(others):
            continue
        three = np.array([worst[place], best, rng.choice(others)])
        shown = _most_active(x, three, np.ones(3), top_images, without=np.array([row]))
        found.append(Matching(int(row), three, shown))
    return found


def spread_classes(scores: Any, per_end: int, *, seed: int = 0) -> IntArray:
    """Return classes from the top, the middle and the bottom of a ranking, each once, in random order.

    Args:
        scores: (K,) numbers by which classes are ranked, such as error rates.
        per_end: Classes from each of the three.
        seed: Seed of the order.

    >>> sorted(spread_classes([0.9, 0.1, 0.5, 0.3, 0.7], 1).tolist())
    [0, 1, 2]
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    middle = max(0, (len(order) - per_end) // 2)
    chosen = np.concatenate([order[:per_end], order[middle : middle + per_end], order[::-1][:per_end]])
    return np.random.default_rng(seed).permutation(np.unique(chosen))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    shares: NDArray[np.float64] = exponentials / exponentials.sum(1, keepdims=True)
    return shares


def _cycled(values: IntArray, count: int, rng: np.random.Generator) -> IntArray:
    """Return ``count`` values in random order, each about as often as the others."""
    rounds = -(-count // len(values))
    return np.concatenate([rng.permutation(values) for _ in range(rounds)])[:count] if count else values[:0]


def _most_active(x: NDArray[Any], features: IntArray, weights: FloatArray, top: int, *, without: IntArray) -> IntArray:
    """Return (F, top) rows of the images that activate features most, or least where the weight is negative."""
    shown = []
    for feature, sign in zip(features, np.where(weights < 0, -1.0, 1.0), strict=True):
        order = np.argsort(-sign * x[:, feature], kind="stable")
        shown.append(order[~np.isin(order, without)][:top])
    return np.array(shown, dtype=np.int64)
