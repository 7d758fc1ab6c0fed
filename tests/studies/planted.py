"""Planted data: images whose features are concepts, a sparse layer on few of them and a dense layer on all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CLASSES, FEATURES, IMAGES = 6, 60, 400


@dataclass(frozen=True)
class Planted:
    """Features (N, D), embeddings (N, E), labels (N,), a sparse and a dense layer (weight, bias)."""

    features: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray
    sparse: tuple[np.ndarray, np.ndarray]
    dense: tuple[np.ndarray, np.ndarray]


def planted(seed: int = 0) -> Planted:
    """Each class has five concepts of its own; an embedding shows which concepts an image has, with noise."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=IMAGES)
    features = np.abs(rng.normal(size=(IMAGES, FEATURES)))
    own = np.arange(FEATURES).reshape(CLASSES, -1)[:, :5]
    for k in range(CLASSES):
        of_class = np.flatnonzero(labels == k)
        features[np.ix_(of_class, own[k])] += rng.gamma(2.0, 1.5, size=(len(of_class), 5))
    projection = rng.normal(size=(FEATURES, 32)) / np.sqrt(32)
    centred = (features - features.mean(0)) / features.std(0)
    embeddings = centred @ projection + 0.3 * rng.normal(size=(IMAGES, 32))
    sparse = np.zeros((CLASSES, FEATURES))
    for k in range(CLASSES):
        sparse[k, own[k]] = 1.0
    dense = rng.normal(size=(CLASSES, FEATURES)) * 0.3
    zeros = np.zeros(CLASSES)
    return Planted(features, embeddings, labels, (sparse, zeros), (dense, zeros))


def image_of(row: int) -> str:
    """A data URI for a row: a pixel."""
    return (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
        f"rkJggg==#{row}"
    )
