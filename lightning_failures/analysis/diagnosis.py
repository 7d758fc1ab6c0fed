"""The kind of failure of a class: statistics that tell kinds apart, and the probability of each kind."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.stats.agreement import auc

MIN_FAILURES = 10
NEIGHBOURS = 10
MOST_EXAMPLES = 2000

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class Direction:
    weight: Rows
    bias: float


@dataclass(frozen=True)
class TrainingExamples:
    phi: Rows
    labels: IntArray


@dataclass(frozen=True)
class FailureStatistics:
    flag_ratio: float | None = None
    one_wrong_class: float | None = None
    wrong_class_auc: float | None = None
    density: float | None = None
    sparsity: float | None = None
    probe_support: float | None = None
    probe_margin: float | None = None
    confidence: float | None = None
    other_side: float | None = None


def failure_statistics(
    class_index: int,
    *,
    phi: Rows,
    predictions: IntArray,
    values: FloatArray | None = None,
    margins: FloatArray | None = None,
    confidence: FloatArray | None = None,
    direction: Direction | None = None,
    training: TrainingExamples | None = None,
) -> FailureStatistics:
    failed = predictions != class_index
    found = {}
    wrong, counts = np.unique(predictions[failed], return_counts=True)
    found["one_wrong_class"] = float(counts.max() / counts.sum())
    wrong_class = int(wrong[counts.argmax()])
    if margins is not None and np.isfinite(margins).any():
        known = np.isfinite(margins)
        found["probe_support"] = float((margins[known & failed] >= 0).mean())
        scale = np.median(margins[known & ~failed]) if (known & ~failed).any() else np.nan
        found["probe_margin"] = float(np.median(margins[known & failed]) / max(scale, 1e-3))
    if confidence is not None:
        found["confidence"] = float(np.median(confidence[failed]))
    if training is None:
        return FailureStatistics(**found)
    own = training.labels == class_index
    if direction is not None and values is not None:
        t = training.phi[own] @ direction.weight + direction.bias < 0
        v = values < 0
        found["flag_ratio"] = math.log((t.sum() + 0.5) / (len(t) + 1)) - math.log((v.sum() + 0.5) / (len(v) + 1))
    w = -direction.weight if direction is not None else phi[failed].mean(0) - phi[~failed].mean(0)
    others = ~own
    found["wrong_class_auc"] = float(auc(training.phi[others] @ w, training.labels[others] == wrong_class))
    T, V = training.phi[own], phi
    dT, dV = T @ V.T, V @ V.T
    np.fill_diagonal(dV, -np.inf)
    both = np.vstack([dT, dV])  # similarity to each val example
    near = np.argpartition(-both, NEIGHBOURS, axis=0)[:NEIGHBOURS]
    nT = (near < len(T)).sum(0) / len(T)
    nV = (near >= len(T)).sum(0) / len(V)
    s = 0.5 / max(len(T), len(V))
    r = np.log((nT + s) / (nV + s))
    found["density"] = float(r[failed].mean() - r[~failed].mean())
    k = min(5, len(T))
    dist = 1 - np.partition(dT, -k, axis=0)[-k]
    found["sparsity"] = float(np.log(dist[failed].mean() / dist[~failed].mean()))
    O = training.phi[others]
    do = 1 - np.partition(O @ V.T, -5, axis=0)[-5]
    found["other_side"] = float(np.log(do[failed] / dist[failed]).mean())
    return FailureStatistics(**found)
