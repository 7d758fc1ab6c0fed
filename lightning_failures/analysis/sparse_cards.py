"""What a person looks at to understand a feature of a sparse layer: examples of two classes, and counterfactuals.

Source: Wong, Santurkar and Madry, Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021; see
:mod:`lightning_failures.sparse`. Ours: the most active images of two classes, because those of one class show what the
class looks like too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.sparse.counterfactuals import FeatureCounterfactual, feature_counterfactual
from lightning_failures.sparse.layer import SparseLayer
from lightning_failures.stats.intervals import share_intervals

TOP_EXAMPLES = 6
"""Number of images of each class."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out examples with their features; in a multilabel task one row for each example and condition.

    Attributes:
        features: (E, D), of the examples.
        place: (n,) int64, the index into ``features`` of each row.
        labels: (n,) int64.
        predictions: (n,) int64, of the model itself.
        ids: (n,) int64.
        sources: (n,) their sources, or None.
    """

    features: NDArray[Any]
    place: IntArray
    labels: IntArray
    predictions: IntArray
    ids: IntArray
    sources: NDArray[Any] | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def x(self) -> NDArray[Any]:
        """(n, D), the features of each row; not copied if they are those of the examples, in order."""
        in_order = np.array_equal(self.place, np.arange(len(self.features)))
        return self.features if in_order else self.features[self.place]

    def take(self, rows: IntArray | BoolArray) -> HeldOut:
        """Return some of the rows, by index or by mask (n,)."""
        sources = None if self.sources is None else self.sources[rows]
        return replace(
            self,
            place=self.place[rows],
            labels=self.labels[rows],
            predictions=self.predictions[rows],
            ids=self.ids[rows],
            sources=sources,
        )

    def of_condition(self, k: int) -> HeldOut:
        """Return the rows of a condition, with the classes 0 (absent) and 1 (present)."""
        rows = self.take(self.labels // 2 == k)
        return replace(rows, labels=rows.labels - 2 * k, predictions=rows.predictions - 2 * k)


@dataclass(frozen=True, eq=False)
class ActiveExamples:
    """The examples of a class that activate a feature most: class, ids (n,) and activations (n,), descending."""

    class_index: int
    ids: IntArray
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class FeatureCard:
    """A problematic feature with the two classes that it confuses most.

    Attributes:
        feature: The feature.
        label: The true class of these errors, an index into all classes.
        prediction: Their predicted class.
        top: The most active examples of the predicted class, then those of the true class.
        counterfactual: What raising and zeroing the feature does to correct predictions of the two classes.
        sources: Numbers of the sources of the examples that are raised, and of those that are zeroed; None: each is its
            own.
    """

    feature: int
    label: int
    prediction: int
    top: tuple[ActiveExamples, ...]
    counterfactual: FeatureCounterfactual
    sources: tuple[IntArray | None, IntArray | None]


def feature_card(
    layer: SparseLayer, held_out: HeldOut, feature: int, pair: tuple[int, int], *, first: int = 0
) -> FeatureCard:
    """Return the card of a feature.

    Args:
        layer: The sparse layer.
        held_out: The examples, with the classes of the layer.
        feature: The feature.
        pair: The true and the predicted class of the errors, classes of the layer.
        first: Index of the first class of the layer among all classes.
    """
    x, label, prediction = held_out.x, *pair
    top = []
    for k in (prediction, label):
        rows = np.flatnonzero(held_out.labels == k)
        rows = rows[np.argsort(-x[rows, feature], kind="stable")[:TOP_EXAMPLES]]
        top.append(ActiveExamples(k + first, held_out.ids[rows].astype(np.int64), x[rows, feature]))
    found = feature_counterfactual(layer, x, held_out.labels, feature, pair, ids=held_out.ids)
    sources = (_sources(held_out, found.ids), _sources(held_out, found.rival_ids))
    return FeatureCard(feature, label + first, prediction + first, tuple(top), found, sources)


def _sources(held_out: HeldOut, ids: IntArray) -> IntArray | None:
    """Return numbers of the sources of some examples, by id; None if each example is its own."""
    if held_out.sources is None:
        return None
    order = np.argsort(held_out.ids, kind="stable")
    rows = order[np.searchsorted(held_out.ids[order], ids)]
    return np.asarray(np.unique(held_out.sources[rows], return_inverse=True)[1])


def card_entry(card: FeatureCard, names: Sequence[str]) -> dict[str, Any]:
    """Return a card as plain values for ``report.json``.

    Args:
        card: The card.
        names: K names.
    """
    found = card.counterfactual
    return {
        "feature": card.feature,
        "label": names[card.label],
        "prediction": names[card.prediction],
        "top": [
            {
                "class": names[one.class_index],
                "ids": [int(i) for i in one.ids],
                "values": [float(value) for value in one.values],
            }
            for one in card.top
        ],
        "nearest_ids": [int(i) for i in found.ids[:TOP_EXAMPLES]],
        "nearest_margins": [float(margin) for margin in found.margins[:TOP_EXAMPLES]],
        "nearest_flip": [bool(flips) for flips in found.raised[:TOP_EXAMPLES]],
        "raised_to": _number(found.raised_to),
        "raised": _flips(found.raised, found.raised_random, card.sources[0]),
        "zeroed": _flips(found.zeroed, found.zeroed_random, card.sources[1]),
    }


def _flips(hits: BoolArray, control: float, sources: IntArray | None) -> dict[str, Any]:
    """Return how many of some correct predictions flip, with the 95 % interval of the share, beside the control."""
    n = len(hits)
    interval = share_intervals(hits.astype(np.int64), 2, sources)[1] if n else None
    return {
        "examples": n,
        "rate": float(hits.mean()) if n else None,
        "interval": None if interval is None else list(interval),
        "random": _number(control),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
