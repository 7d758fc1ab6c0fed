"""Fit of the sparse decision layers: one layer for the whole model, and which of its features is behind each error.

Source: Wong, Santurkar and Madry, Leveraging Sparse Linear Layers for Debuggable Deep Networks, ICML 2021; see
:mod:`lightning_failures.sparse`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_failures.analysis.method import Contribution, FitTask, TrainingFeatures
from lightning_failures.core.arrays import as_array
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.threads import one_thread
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.errors import DataError
from lightning_failures.sparse.debug import (
    ALL_CLASSES,
    NO_FEATURE,
    ClassPairs,
    FeatureEffects,
    ProblematicFeatures,
    class_pairs,
    feature_effects,
    problematic_features,
)
from lightning_failures.sparse.layer import SparseLayer, fit_sparse_layer
from lightning_failures.stats.intervals import share_intervals, wilson_interval

MAX_DROP = 0.05
"""How far below the best accuracy the layer may lie."""

N_LAMBDAS = 60
"""Length of the path, down to 0.001 of the largest lambda."""

MAX_SECONDS = 600.0
"""Time for the path if the analysis has no budget; a path that is cut has a shorter curve."""

_CELLS = 20_000_000  # of the logits of the held-out examples
_SMALL = 100_000_000  # features of the held-out examples, up to which one thread is used
_WORK = 4e9  # operations of the effects of all features
_TOP_FEATURES = 24  # most often problematic
_TOP_MASKS = 40
_TOP_PAIRS = 24
_TOP_WEIGHTS = 12  # of each class
_TOP_ERRORS = 200
_TOP_EXAMPLES = 8  # of a feature


@dataclass(frozen=True, eq=False)
class SparseFindings:
    """A sparse layer of the model, and what it says about the errors of held-out examples.

    Attributes:
        layer: The layer, for the penultimate features of the model.
        problematic: The problematic feature of each error, with controls.
        effects: What the removal of each feature does to all predictions; None if that would have taken too long.
        pairs: What pairs of classes share.
        top_ids: Ids of the held-out examples that activate a feature most, for the features that are reported.
        fixed_interval: 95 % interval of the share of errors that one feature fixes; examples of one source are not
            independent.
        broken_interval: The same for the share of correct predictions that are broken.
    """

    layer: SparseLayer
    problematic: ProblematicFeatures
    effects: FeatureEffects | None
    pairs: ClassPairs
    top_ids: dict[int, tuple[int, ...]]
    fixed_interval: tuple[float, float]
    broken_interval: tuple[float, float]


@dataclass(frozen=True)
class SparseFit:
    """Fit of a sparse layer to penultimate features of the training set; the examples of the task are held out.

    The layer is fitted once, on the first process. Where the training set cannot be read, it is fitted to half of the
    examples of the task, whole sources, and the other half is held out.

    Attributes:
        max_drop: How far below the best accuracy the layer may lie.
        n_lambdas: Length of the path.
    """

    name: ClassVar[str] = "sparse"
    by_prediction: ClassVar[bool] = False
    max_drop: float = MAX_DROP
    n_lambdas: int = N_LAMBDAS

    def fit(self, task: FitTask) -> Contribution:
        """Gather the features on the first process, fit there, and give the findings to all processes. Collective."""
        workers = task.partition.workers
        if (reason := _unsupported(task)) is not None:
            return Contribution(notes=(f"No sparse decision layers: {reason}",))
        if any(workers.gather_results(lambda: task.deadline is not None and task.deadline.passed)):
            return Contribution(notes=("No sparse decision layers: the time budget was spent on other methods.",))
        held_out = _sampled(task)
        mine = np.flatnonzero(task.partition.rows & held_out)
        parts = workers.gather_results(lambda: (mine, np.asarray(as_array(task.values[mine]))))
        rows = np.concatenate([part for part, _ in parts])
        order = np.argsort(rows, kind="stable")
        features = np.concatenate([part for _, part in parts if len(part)])[order] if len(rows) else None
        del parts

        reading = None if task.deadline is None else Deadline.after(task.deadline.left / 2)
        training = None if task.training is None else task.training(reading)

        def study() -> Contribution:
            if workers.rank:
                return Contribution()
            if features is None:
                return Contribution(notes=("No sparse decision layers: no example has penultimate features.",))
            small = len(rows) * features.shape[1] <= _SMALL
            try:
                with one_thread() if small else nullcontext():  # waiting for other threads costs more than they bring
                    return self._study(task, rows[order], features, training)
            except DataError as error:
                return Contribution(notes=(f"No sparse decision layers: {error}",))

        return workers.gather_results(study)[0]

    def _study(
        self, task: FitTask, rows: IntArray, features: NDArray[Any], training: TrainingFeatures | None
    ) -> Contribution:
        """Fit the layer, and ask each error on held-out examples which feature did it; on the first process.

        Args:
            task: The task.
            rows: (n,) int64, rows of the grades.
            features: (n, D), their features.
            training: The training examples, or why there are none.
        """
        split = _split(task, rows, features, training)
        x, y, ids = features[split.held_out], split.labels[split.held_out], split.ids[split.held_out]
        if not len(y):
            raise DataError("no example is left to examine.")
        layer = fit_sparse_layer(
            split.features,
            split.targets,
            validation=(x, y),
            max_drop=self.max_drop,
            n_lambdas=self.n_lambdas,
            seed=task.seed,
            device=task.device,
            deadline=task.deadline or Deadline.after(MAX_SECONDS),
        )
        notes = list(split.notes)
        if len(layer.curve.lambdas) < self.n_lambdas:
            notes.append(
                f"The path of sparse layers ends after {len(layer.curve.lambdas)} of {self.n_lambdas} values of lambda:"
                " the time was spent."
            )
        found = _examine(layer, x, y, ids, None if split.sources is None else split.sources[split.held_out], task.seed)
        if found.effects is None:
            notes.append("Which features are worth masking is not computed: there are too many classes and features.")
        predictions = as_array(task.grades.predictions)[rows[split.held_out]]
        section = sparse_section(found, task.grades.class_names) | {
            "max_drop": self.max_drop,
            "fitted_on": {"source": split.source, "examples": len(split.targets), "of": split.total},
            "model_accuracy": float((predictions == y).mean()),
        }
        return Contribution(found, _summary(found), section=section, notes=tuple(notes))


@dataclass(frozen=True, eq=False)
class _Split:
    """What the layer is fitted to, and the examples of the task that are held out.

    Attributes:
        features: Features to fit to.
        targets: (M,) int64, their labels.
        source: "train" or "validation".
        total: Number of examples of which these are a sample.
        labels: (n,) int64, of all examples of the task.
        ids: (n,) int64.
        sources: (n,) names of their sources, or None.
        held_out: (n,) bool.
        notes: Sentences for the notes of the report.
    """

    features: Any
    targets: IntArray
    source: str
    total: int
    labels: IntArray
    ids: IntArray
    sources: NDArray[Any] | None
    held_out: BoolArray
    notes: tuple[str, ...]


def _split(task: FitTask, rows: IntArray, features: NDArray[Any], training: TrainingFeatures | None) -> _Split:
    """Fit to the training examples, and without them to half of the examples of the task, whole sources."""
    grades = task.grades
    labels, ids = as_array(grades.labels)[rows], as_array(grades.ids)[rows]
    sources = None if grades.groups is None else as_array(grades.groups)[rows]
    if training is not None and training.features is not None:
        held_out = labels <= int(training.labels.max(initial=-1))
        notes = training.notes
        if not held_out.all():
            left_out = int((~held_out).sum())
            of = "example is" if left_out == 1 else "examples are"
            notes = (*notes, f"{left_out} {of} not examined by the sparse layer: of a class without training examples.")
        return _Split(
            training.features, training.labels, "train", training.total, labels, ids, sources, held_out, notes
        )
    names = ids if sources is None else np.unique(sources, return_inverse=True)[1]
    fitted = stable_hash(names.astype(np.int64), task.seed) % np.uint64(2) == 1
    targets = labels[fitted]
    held_out = ~fitted & (labels <= int(targets.max(initial=-1)))
    problem = "their features were not given." if training is None else training.problem
    note = (
        f"The sparse decision layer is fitted to {len(targets)} of the {len(rows)} evaluated examples and examined on"
        f" the others, not fitted to training images: {problem}"
    )
    return _Split(features[fitted], targets, "validation", len(rows), labels, ids, sources, held_out, (note,))


def _unsupported(task: FitTask) -> str | None:
    """Return why there can be no layer, the same on all processes; None if there can."""
    grades = task.grades
    if grades.predictions is None or grades.verdicts is not None:
        return "examples have verdicts instead of predicted classes."
    if len(grades.class_names) < 2:
        return "there is a single class."
    if len(torch.unique(grades.ids)) < len(grades.ids):
        return "several conditions an example (multilabel) are not supported."
    return None


def _sampled(task: FitTask) -> BoolArray:
    """Return which rows are held out, (N,) bool: all, or a sample by hash whose logits fit into memory."""
    most = max(_CELLS // len(task.grades.class_names), 1)
    rows = np.flatnonzero(task.partition.sampled)
    if len(rows) > most:
        order = np.argsort(stable_hash(as_array(task.grades.ids)[rows], task.seed), kind="stable")
        rows = rows[order[:most]]
    chosen = np.zeros(len(task.grades), dtype=bool)
    chosen[rows] = True
    return chosen


def _examine(
    layer: SparseLayer, x: NDArray[Any], y: IntArray, ids: IntArray, sources: NDArray[Any] | None, seed: int
) -> SparseFindings:
    """Ask each error which feature did it, and each feature what it costs."""
    problematic = problematic_features(layer, x, y, ids=ids, seed=seed)
    used = layer.weight != 0
    removals = int(used.sum()) + int(used.any(0).sum())
    affordable = int(_WORK / max(removals * len(used), 1))  # examples
    effects = None
    if affordable >= min(len(y), 1000):
        chosen = np.argsort(stable_hash(ids.astype(np.int64), seed), kind="stable")[:affordable]
        effects = feature_effects(layer, x[chosen], y[chosen])
    shown = {*_most_problematic(problematic)[0][:_TOP_FEATURES].tolist()}
    for k in range(len(used)):
        shown.update(_leading_features(layer, k)[:_TOP_WEIGHTS].tolist())
    if effects is not None:
        shown.update(effects.feature[effects.worth_masking()][:_TOP_MASKS].tolist())
    top_ids = {
        j: tuple(int(i) for i in ids[np.argsort(-x[:, j], kind="stable")[:_TOP_EXAMPLES]]) for j in sorted(shown)
    }
    right = np.isin(ids, problematic.correct_ids)
    return SparseFindings(
        layer,
        problematic,
        effects,
        class_pairs(layer, x, y),
        top_ids,
        _interval(problematic.fixed, None if sources is None else sources[~right]),
        _interval(problematic.broken, None if sources is None else sources[right]),
    )


def _interval(hits: BoolArray, sources: NDArray[Any] | None) -> tuple[float, float]:
    """Return the 95 % interval of a share, at the effective number of examples."""
    numbers = None if sources is None else np.unique(sources, return_inverse=True)[1]
    return share_intervals(hits.astype(np.int64), 2, numbers)[1]


def _summary(found: SparseFindings) -> dict[str, float]:
    """Return the aggregates that are logged; undefined ones are absent."""
    values = {
        "accuracy": found.layer.accuracy,
        "features_per_class": found.layer.features_per_class,
        "fixed_by_one_feature": found.problematic.fixed_rate,
        "broken_by_one_feature": found.problematic.broken_rate,
    }
    return {f"sparse/{name}": value for name, value in values.items() if np.isfinite(value)}


def _most_problematic(found: ProblematicFeatures) -> tuple[IntArray, IntArray]:
    """Return the features that are behind errors, those with most errors first, and their numbers of errors."""
    features, counts = np.unique(found.feature[found.feature != NO_FEATURE], return_counts=True)
    order = np.lexsort((features, -counts))
    return features[order], counts[order]


def _leading_features(layer: SparseLayer, k: int) -> IntArray:
    """Return the features of class k, the largest standardized weight first."""
    scaled = (layer.weight[k] * layer.std).abs().numpy()
    used = np.flatnonzero(scaled)
    return np.asarray(used[np.argsort(-scaled[used], kind="stable")])


def sparse_section(found: SparseFindings, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the findings as plain values for ``report.json``; lists hold the most important entries.

    Args:
        found: The findings.
        class_names: K names.
    """
    layer, problematic = found.layer, found.problematic
    curve = layer.curve
    errors, right = len(problematic.ids), len(problematic.correct_ids)
    return {
        "features": layer.weight.shape[1],
        "held_out": layer.held_out,
        "accuracy": layer.accuracy,
        "accuracy_interval": _plain(layer.accuracy_interval),
        "dense_accuracy": layer.dense_accuracy,
        "best_accuracy": float(curve.accuracy.max()),
        "features_per_class": layer.features_per_class,
        "used_features": int((layer.weight != 0).any(0).sum()),
        "chosen": layer.index,
        "curve": [
            {"lambda": strength, "features_per_class": used, "accuracy": accuracy}
            for strength, used, accuracy in zip(
                curve.lambdas.tolist(), curve.features_per_class.tolist(), curve.accuracy.tolist(), strict=True
            )
        ],
        "errors_examined": errors,
        "correct_examined": right,
        "fixed": _rate(problematic.fixed_rate, errors, found.fixed_interval),
        "random_used": _rate(problematic.random_used_rate, errors),
        "random_any": _rate(problematic.random_any_rate, errors),
        "broken": _rate(problematic.broken_rate, right, found.broken_interval),
        "problematic": _problematic_entries(found, class_names),
        "errors": _error_entries(problematic, class_names),
        "classes": _class_entries(layer, class_names),
        "worth_masking": _masking_entries(found.effects, class_names),
        "pairs": _pair_entries(found.pairs, class_names),
        "pairs_correlation": {
            "shared": _number(found.pairs.shared_rank_correlation),
            "weights": _number(found.pairs.weight_rank_correlation),
        },
        "top_ids": {str(feature): list(ids) for feature, ids in found.top_ids.items()},
    }


def _problematic_entries(found: SparseFindings, names: Sequence[str]) -> list[dict[str, Any]]:
    problematic = found.problematic
    entries = []
    features, counts = _most_problematic(problematic)
    for feature, count in zip(features[:_TOP_FEATURES].tolist(), counts.tolist(), strict=False):
        of_feature = problematic.feature == feature
        pairs = Counter(
            zip(problematic.labels[of_feature].tolist(), problematic.predictions[of_feature].tolist(), strict=True)
        )
        by_gain = np.argsort(-problematic.gain[of_feature], kind="stable")[:_TOP_EXAMPLES]
        entries.append(
            {
                "feature": feature,
                "errors": count,
                "share": count / max(len(problematic.ids), 1),
                "fixed": int(problematic.fixed[of_feature].sum()),
                "pairs": [
                    {"label": names[label], "prediction": names[prediction], "count": number}
                    for (label, prediction), number in pairs.most_common(5)
                ],
                "error_ids": [int(i) for i in problematic.ids[of_feature][by_gain]],
            }
        )
    return entries


def _error_entries(found: ProblematicFeatures, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the errors with the largest gain first."""
    order = np.argsort(-found.gain, kind="stable")[:_TOP_ERRORS]
    return [
        {
            "id": int(found.ids[e]),
            "label": names[int(found.labels[e])],
            "prediction": names[int(found.predictions[e])],
            "feature": int(found.feature[e]) if found.feature[e] != NO_FEATURE else None,
            "gain": float(found.gain[e]),
            "fixed": bool(found.fixed[e]),
        }
        for e in order
    ]


def _class_entries(layer: SparseLayer, names: Sequence[str]) -> list[dict[str, Any]]:
    scaled = layer.weight * layer.std
    return [
        {
            "name": names[k],
            "features": int((layer.weight[k] != 0).sum()),
            "weights": [
                {"feature": j, "weight": float(scaled[k, j])}
                for j in _leading_features(layer, k)[:_TOP_WEIGHTS].tolist()
            ],
        }
        for k in range(len(scaled))
    ]


def _masking_entries(effects: FeatureEffects | None, names: Sequence[str]) -> list[dict[str, Any]] | None:
    if effects is None:
        return None
    rows = np.flatnonzero(effects.worth_masking())[:_TOP_MASKS]
    return [
        {
            "feature": int(effects.feature[row]),
            "class": None if effects.class_index[row] == ALL_CLASSES else names[int(effects.class_index[row])],
            "fixed": int(effects.fixed[row]),
            "broken": int(effects.broken[row]),
            "effect": float(effects.effect[row]),
            "interval": _plain(effects.interval[row]),
            "p_value": float(effects.p_value[row]),
        }
        for row in rows
    ]


def _pair_entries(pairs: ClassPairs, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs with most confusions."""
    order = np.lexsort((-pairs.correlation, -pairs.confusions))[:_TOP_PAIRS]
    return [
        {
            "first": names[int(pairs.first[p])],
            "second": names[int(pairs.second[p])],
            "shared": int(pairs.shared[p]),
            "correlation": float(pairs.correlation[p]),
            "confusions": int(pairs.confusions[p]),
        }
        for p in order
        if pairs.confusions[p] > 0
    ]


def _rate(rate: float, n: int, interval: tuple[float, float] | None = None) -> dict[str, Any]:
    """Return a share of n examples with its 95 % interval; by default that of independent examples."""
    if not n:
        return {"rate": None, "interval": None}
    return {"rate": rate, "interval": _plain(interval or wilson_interval(rate * n, n))}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _plain(values: FloatArray | tuple[float, float]) -> list[float]:
    return [float(value) for value in values]
