"""What happens to correct predictions when a single feature is raised or zeroed, between two classes.

Source: Wong, Santurkar and Madry, ICML 2021, on counterfactuals. Ours: the controls, and that only one feature moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import as_rows, as_vector
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.errors import DataError
from lightning_failures.sparse.layer import SparseLayer

PERCENTILE = 99
"""Percentile of its activations that a feature is raised to."""

_DRAWS = 16  # random features of a control


@dataclass(frozen=True, eq=False)
class FeatureCounterfactual:
    """How correct predictions of two classes change when one feature of a sparse layer is set to another value.

    Attributes:
        feature: The feature.
        label: The class whose correct examples get more of the feature.
        rival: The class that they may flip to.
        ids: (n,) ids of the correct examples of ``label``, those nearest to the rival first.
        margins: (n,) float64 >= 0, logit of the label minus that of the rival, ascending.
        raised_to: 99th percentile of the feature over all examples.
        raised: (n,) bool: the prediction becomes the rival when the feature is raised to that value; where it is above,
            it stays.
        raised_random: Mean share of flips when a random feature that the rival uses is raised instead; NaN without any.
        rival_ids: (m,) ids of the correct examples of the *rival*.
        zeroed: (m,) bool, of these examples: the prediction becomes ``label`` when the feature is 0.
        zeroed_random: The same for random features that the rival uses; NaN without any.
    """

    feature: int
    label: int
    rival: int
    ids: NDArray[Any]
    margins: FloatArray
    raised_to: float
    raised: BoolArray
    raised_random: float
    rival_ids: NDArray[Any]
    zeroed: BoolArray
    zeroed_random: float


def feature_counterfactual(
    layer: SparseLayer,
    features: Any,
    labels: Any,
    feature: int,
    pair: tuple[int, int],
    *,
    ids: Any = None,
    seed: int = 0,
) -> FeatureCounterfactual:
    """Raise and zero a feature of correct held-out examples of two classes, and count the predictions that flip.

    Args:
        layer: The sparse layer.
        features: (N, D) raw features of held-out examples.
        labels: (N,) int.
        feature: The feature.
        pair: The class whose examples get more of the feature, and the class that they may flip to.
        ids: (N,) ids of the examples; None: 0 ... N - 1.
        seed: Seed of the random features of the controls.

    Raises:
        DataError: A shape, class or feature that the layer does not have, or twice the same class.

    >>> import torch
    >>> from lightning_failures.sparse import AccuracyCurve
    >>> weight = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> curve = AccuracyCurve(*(torch.ones(1) for _ in range(3)))
    >>> layer = SparseLayer(weight, torch.zeros(2), torch.ones(2), curve, 0, 3)
    >>> x = np.array([[1.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    >>> found = feature_counterfactual(layer, x, [0, 0, 1], 1, (0, 1))
    >>> found.ids.tolist(), found.margins.tolist(), found.raised.tolist(), found.zeroed.tolist()
    ([0, 1], [1.0, 3.0], [True, False], [True])
    """
    rows = as_rows(features, "features")
    y = as_vector(labels, "labels", len(rows)).astype(np.int64)
    classes, dim = layer.weight.shape
    label, rival = pair
    if rows.shape[1] != dim or not 0 <= feature < dim or label == rival or not {label, rival} <= set(range(classes)):
        raise DataError(
            f"feature_counterfactual needs features (N, {dim}), one of them, and two of {classes} classes; got"
            f" {rows.shape}, feature {feature} and classes {label} and {rival}."
        )
    names = np.arange(len(rows)) if ids is None else as_vector(ids, "ids", len(rows))
    weight = layer.weight.double().numpy()
    logits = layer.decision(rows).double().numpy()
    right = logits.argmax(axis=1) == y
    own, others = np.flatnonzero(right & (y == label)), np.flatnonzero(right & (y == rival))
    margins = logits[own, label] - logits[own, rival]
    order = np.argsort(margins, kind="stable")
    own, margins = own[order], margins[order]

    def becomes(examples: IntArray, one: int, target: int, *, value: float | None) -> BoolArray:
        """Return which predictions become ``target`` when a feature is raised to a value; None: set to 0."""
        old = rows[examples, one].astype(np.float64)
        new = np.zeros_like(old) if value is None else np.maximum(old, value)
        changed = logits[examples] + (new - old)[:, None] * weight[:, one]
        return np.asarray(changed.argmax(axis=1) == target)

    used = np.setdiff1d(np.flatnonzero(weight[rival]), [feature])
    drawn = used if len(used) <= _DRAWS else np.random.default_rng(seed).choice(used, _DRAWS, replace=False)
    high = {int(j): float(np.percentile(rows[:, j], PERCENTILE)) for j in (feature, *drawn)} if len(rows) else {}
    of_random = [becomes(own, int(j), rival, value=high[int(j)]) for j in drawn] if len(own) else []
    without = [becomes(others, int(j), label, value=None) for j in drawn] if len(others) else []
    raised_to = high.get(feature, float("nan"))
    return FeatureCounterfactual(
        feature=feature,
        label=label,
        rival=rival,
        ids=names[own],
        margins=margins,
        raised_to=raised_to,
        raised=becomes(own, feature, rival, value=raised_to),
        raised_random=float(np.mean(of_random)) if of_random else float("nan"),
        rival_ids=names[others],
        zeroed=becomes(others, feature, label, value=None),
        zeroed_random=float(np.mean(without)) if without else float("nan"),
    )
