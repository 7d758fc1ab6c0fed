"""Which feature of a sparse layer is behind an error, beside controls, and which features cost more than they bring.

A feature is *removed* by setting its raw activation to 0. All examples must be held out: on the fitting set a layer
explains its own errors too well.

Source: Wong, Santurkar and Madry, ICML 2021, on misclassifications. Departures: the problematic feature is the one
whose removal gains most in the difference between the logits of the true and the predicted class, instead of the
largest contribution to the predicted class; and controls stand beside it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata  # type: ignore[import-untyped]

from lightning_failures.core.arrays import as_array, as_rows, as_vector
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.errors import DataError
from lightning_failures.sparse.layer import SparseLayer
from lightning_failures.stats.intervals import (
    benjamini_hochberg,
    paired_difference_interval,
    sign_test,
    wilson_interval,
)

NO_FEATURE = -1
"""Number in place of a feature where no removal helps."""

ALL_CLASSES = -1
"""Number in place of a class where a feature is removed from all classes."""

_DRAWS = 16  # random features of a control, for each error


@dataclass(frozen=True, eq=False)
class ProblematicFeatures:
    """The problematic feature of each error, and the controls.

    Attributes:
        ids: (E,) ids of the errors, in the order of the examples.
        labels: (E,) int64, their true classes.
        predictions: (E,) int64, their predicted classes.
        feature: (E,) int64, the feature whose removal gains most in the logit difference true - predicted; -1 where no
            removal gains.
        gain: (E,) float64, by how much; 0 where no removal gains.
        fixed: (E,) bool: the prediction becomes right when this feature alone is removed.
        random_used: (E,) float64 in [0, 1], share of up to 16 random features used by the predicted class whose removal
            makes the prediction right.
        random_any: (E,) float64 in [0, 1], the same for random features that any class uses.
        correct_ids: (C,) ids of the correct predictions.
        broken: (C,) bool: the prediction becomes wrong when their own top feature is removed, the one whose removal
            costs most in the logit difference between the class and its strongest rival.
    """

    ids: NDArray[Any]
    labels: IntArray
    predictions: IntArray
    feature: IntArray
    gain: FloatArray
    fixed: BoolArray
    random_used: FloatArray
    random_any: FloatArray
    correct_ids: NDArray[Any]
    broken: BoolArray

    @property
    def fixed_rate(self) -> float:
        """Share of the errors that one feature fixes; NaN without errors. Read it beside :attr:`broken_rate`."""
        return _mean(self.fixed)

    @property
    def fixed_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of :attr:`fixed_rate`."""
        return wilson_interval(int(self.fixed.sum()), len(self.fixed))

    @property
    def broken_rate(self) -> float:
        """Share of the correct predictions that removing their own top feature breaks; NaN without any."""
        return _mean(self.broken)

    @property
    def broken_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of :attr:`broken_rate`."""
        return wilson_interval(int(self.broken.sum()), len(self.broken))

    @property
    def random_used_rate(self) -> float:
        """Mean of :attr:`random_used`; NaN without errors."""
        return _mean(self.random_used)

    @property
    def random_any_rate(self) -> float:
        """Mean of :attr:`random_any`; NaN without errors."""
        return _mean(self.random_any)


@dataclass(frozen=True, eq=False)
class FeatureEffects:
    """What the removal of each feature does to a whole set of examples, the most costly features first.

    Attributes:
        feature: (M,) int64.
        class_index: (M,) int64, the class whose logit loses the feature; -1: all classes.
        fixed: (M,) int64, the number of errors that become correct.
        broken: (M,) int64, the number of correct predictions that become wrong.
        effect: (M,) float64, the accuracy without the feature minus that with it: (fixed - broken) / examples.
        interval: (M, 2) float64, its 95 % interval, given the number of predictions that change.
        p_value: (M,) float64, sign test of fixed against broken.
        examples: Number of examples.
    """

    feature: IntArray
    class_index: IntArray
    fixed: IntArray
    broken: IntArray
    effect: FloatArray
    interval: FloatArray
    p_value: FloatArray
    examples: int

    def worth_masking(self, level: float = 0.05) -> BoolArray:
        """Return which removals raise the accuracy, (M,) bool, at a false discovery rate of ``level`` over all."""
        return benjamini_hochberg(self.p_value, level) & (self.effect > 0)


@dataclass(frozen=True)
class RightReasons:
    """The accuracy of a linear layer with some features removed, beside that with all features.

    Attributes:
        features: The features that are removed, ascending.
        accuracy: With all features, in [0, 1].
        masked_accuracy: Without them.
        gained: Number of examples that are right only without them.
        lost: Number of examples that are right only with them: right for the wrong reasons.
        examples: Number of examples.
        interval: 95 % interval of ``masked_accuracy - accuracy``, paired.
    """

    features: tuple[int, ...]
    accuracy: float
    masked_accuracy: float
    gained: int
    lost: int
    examples: int
    interval: tuple[float, float]


def right_reasons(features: Any, labels: Any, masked: Collection[int], *, weight: Any, bias: Any) -> RightReasons:
    """Compare a linear layer with the same layer without some features, such as those that people call spurious.

    A removed feature has the raw activation 0. Source: Singla et al., Barlow, CVPR 2021, section 10.

    Args:
        features: (N, D) floats, held out.
        labels: (N,) int.
        masked: Indices of the features that are removed.
        weight: (K, D), of the layer.
        bias: (K,), of the layer.

    Raises:
        DataError: There is no example, shapes do not match, or there is no such feature.

    >>> x, y = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1, 1, 0])
    >>> found = right_reasons(x, y, [0], weight=np.array([[0.0, 0.0], [1.0, 1.0]]), bias=np.array([0.5, 0.0]))
    >>> found.accuracy, found.masked_accuracy, found.gained, found.lost    # the first feature is no reason
    (0.6666666666666666, 0.6666666666666666, 1, 1)
    """
    x = as_rows(features, "features")
    y = as_vector(labels, "labels", len(x))
    w, b = as_rows(weight, "weight"), as_array(bias).astype(np.float64)
    columns = np.array(sorted(set(masked)), dtype=np.int64)
    if not len(x) or w.shape[1] != x.shape[1] or b.shape != (len(w),):
        raise DataError(
            f"features {x.shape}, weight {w.shape} and bias {b.shape} must be those of examples and a layer."
        )
    if len(columns) and not 0 <= columns[0] <= columns[-1] < x.shape[1]:
        raise DataError(f"masked features must be in 0 ... {x.shape[1] - 1}, got {columns.tolist()}.")
    logits = x.astype(np.float64) @ w.T.astype(np.float64) + b
    right = logits.argmax(1) == y
    right_without = (logits - x[:, columns].astype(np.float64) @ w[:, columns].T).argmax(1) == y
    both, gained, lost = (
        int(part.sum()) for part in (right & right_without, ~right & right_without, right & ~right_without)
    )
    return RightReasons(
        tuple(columns.tolist()), float(right.mean()), float(right_without.mean()), gained, lost, len(y),
        paired_difference_interval(both, gained, lost, len(y) - both - gained - lost),
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class ClassPairs:
    """What pairs of classes share in a sparse layer, beside how often they are confused.

    Attributes:
        first: (P,) int64, the smaller class.
        second: (P,) int64, the larger class.
        shared: (P,) int64, the number of features that both use.
        correlation: (P,) float64, correlation of their weights for standardized features; 0 for a class without any.
        confusions: (P,) int64, the number of errors between the two, either way.
    """

    first: IntArray
    second: IntArray
    shared: IntArray
    correlation: FloatArray
    confusions: IntArray

    @property
    def shared_rank_correlation(self) -> float:
        """Spearman correlation of :attr:`shared` and :attr:`confusions`; NaN if one of them is constant."""
        return _spearman(self.shared, self.confusions)

    @property
    def weight_rank_correlation(self) -> float:
        """Spearman correlation of :attr:`correlation` and :attr:`confusions`; NaN if one of them is constant."""
        return _spearman(self.correlation, self.confusions)


def problematic_features(
    layer: SparseLayer, features: Any, labels: Any, *, ids: Any = None, seed: int = 0
) -> ProblematicFeatures:
    """Find the problematic feature of each error, and whether its removal alone makes the prediction right.

    Args:
        layer: The sparse layer.
        features: (N, D) raw features of held-out examples.
        labels: (N,) int.
        ids: (N,) ids of the examples; None: 0 ... N - 1.
        seed: Seed of the random features of the controls.

    >>> from lightning_failures.sparse import fit_sparse_layer
    >>> rng = np.random.default_rng(0)
    >>> y = rng.integers(0, 2, 600)
    >>> x = np.abs(rng.normal(size=(600, 4))) + 2 * np.stack([y == 0, y == 1, y == 0, y == 1], axis=1)
    >>> layer = fit_sparse_layer(x[:400], y[:400], n_lambdas=10)
    >>> test, labels = x[400:].copy(), y[400:]
    >>> test[labels == 0, 1] += 6                     # an artefact of class 1 in images of class 0
    >>> found = problematic_features(layer, test, labels)
    >>> bool((found.feature[found.labels == 0] == 1).all()), found.fixed_rate > 0.9
    (True, True)
    """
    examples = _Predicted.of(layer, features, labels)
    names = np.arange(len(examples.labels)) if ids is None else as_vector(ids, "ids", len(examples.labels))
    errors, correct = np.flatnonzero(~examples.right), np.flatnonzero(examples.right)
    feature, gain = examples.best_removal(errors, examples.predictions, examples.labels)
    top, _ = examples.best_removal(correct, examples.labels, examples.rivals())
    weight, rng = examples.weight, np.random.default_rng(seed)
    by_class = [np.flatnonzero(row) for row in weight]
    used = [by_class[k] for k in examples.predictions[errors]]
    by_any = np.flatnonzero((weight != 0).any(axis=0))
    return ProblematicFeatures(
        ids=names[errors],
        labels=examples.labels[errors],
        predictions=examples.predictions[errors],
        feature=feature,
        gain=gain,
        fixed=examples.right_without(errors, feature),
        random_used=_control(examples, errors, used, rng),
        random_any=_control(examples, errors, [by_any] * len(errors), rng),
        correct_ids=names[correct],
        broken=~examples.right_without(correct, top),
    )


def feature_effects(layer: SparseLayer, features: Any, labels: Any) -> FeatureEffects:
    """Measure what the removal of each used feature does to all predictions: for one class, and for all classes.

    Args:
        layer: The sparse layer.
        features: (N, D) raw features of held-out examples.
        labels: (N,) int.
    """
    examples = _Predicted.of(layer, features, labels)
    rows = []
    for j in np.flatnonzero((examples.weight != 0).any(axis=0)).tolist():
        rows.append((j, ALL_CLASSES, *examples.changes(j, examples.weight[:, j])))
        for k in np.flatnonzero(examples.weight[:, j]).tolist():
            alone = np.where(np.arange(len(examples.weight)) == k, examples.weight[:, j], 0.0)
            rows.append((j, k, *examples.changes(j, alone)))
    feature, class_index, fixed, broken = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    n, changed = max(len(examples.labels), 1), fixed + broken
    ends = np.array([wilson_interval(f, m) for f, m in zip(fixed.tolist(), changed.tolist(), strict=True)])
    interval = (2 * ends.reshape(-1, 2) - 1) * changed[:, None] / n
    p_value = np.array([sign_test(f, b) for f, b in zip(fixed.tolist(), broken.tolist(), strict=True)])
    order = np.lexsort((class_index, feature, -interval[:, 0], -(fixed - broken)))
    return FeatureEffects(
        feature=feature[order],
        class_index=class_index[order],
        fixed=fixed[order],
        broken=broken[order],
        effect=((fixed - broken) / n)[order],
        interval=interval[order],
        p_value=p_value[order],
        examples=len(examples.labels),
    )


def class_pairs(layer: SparseLayer, features: Any, labels: Any) -> ClassPairs:
    """Compare the weights of all pairs of classes with their confusions on held-out examples.

    Args:
        layer: The sparse layer.
        features: (N, D) raw features of held-out examples.
        labels: (N,) int.
    """
    examples = _Predicted.of(layer, features, labels)
    classes = len(examples.weight)
    used = (examples.weight != 0).astype(np.float64)
    scaled = examples.weight * layer.std.double().numpy()
    scaled = scaled - scaled.mean(axis=1, keepdims=True)
    length = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    unit = np.divide(scaled, length, out=np.zeros_like(scaled), where=length > 0)
    code = examples.labels * classes + examples.predictions
    table = np.bincount(code, minlength=classes**2).reshape(classes, classes)
    first, second = np.triu_indices(classes, 1)
    return ClassPairs(
        first.astype(np.int64),
        second.astype(np.int64),
        np.rint(used @ used.T).astype(np.int64)[first, second],
        (unit @ unit.T)[first, second],
        (table + table.T)[first, second],
    )


@dataclass(frozen=True, eq=False)
class _Predicted:
    """Examples with the predictions of a layer: features (N, D), weight (K, D), logits (N, K), labels, predictions."""

    features: NDArray[Any]
    weight: FloatArray
    logits: FloatArray
    labels: IntArray
    predictions: IntArray

    @classmethod
    def of(cls, layer: SparseLayer, features: Any, labels: Any) -> _Predicted:
        rows = as_rows(features, "features")
        y = as_vector(labels, "labels", len(rows)).astype(np.int64)
        classes, dim = layer.weight.shape
        if rows.shape[1] != dim:
            raise DataError(f"features must have {dim} dimensions, as the layer has; got {rows.shape[1]}.")
        if len(y) and not 0 <= y.min() <= y.max() < classes:
            raise DataError(f"labels must be 0 ... {classes - 1}, the classes of the layer.")
        logits = layer.decision(rows).double().numpy()
        return cls(rows, layer.weight.double().numpy(), logits, y, logits.argmax(axis=1))

    @property
    def right(self) -> BoolArray:
        """(N,) bool: the prediction is the label."""
        return np.asarray(self.predictions == self.labels)

    def rivals(self) -> IntArray:
        """Return the class other than the label with the largest logit, (N,)."""
        others = self.logits.copy()
        others[np.arange(len(others)), self.labels] = -np.inf
        return np.asarray(others.argmax(axis=1))

    def best_removal(self, rows: IntArray, hurt: IntArray, helped: IntArray) -> tuple[IntArray, FloatArray]:
        """Return the feature whose removal most raises the logit of ``helped`` minus that of ``hurt``, and by how much.

        Args:
            rows: (E,) examples.
            hurt: (N,) class of each example.
            helped: (N,) class of each example.

        Returns:
            (E,) int64, -1 where no removal raises the difference; and (E,) float64.
        """
        feature, gain = np.full(len(rows), NO_FEATURE), np.zeros(len(rows))
        for e, i in enumerate(rows.tolist()):
            difference = self.weight[hurt[i]] - self.weight[helped[i]]
            used = np.flatnonzero(difference)
            gains = difference[used] * self.features[i, used].astype(np.float64)
            if len(used) and gains.max() > 0:
                feature[e], gain[e] = used[gains.argmax()], gains.max()
        return feature, gain

    def right_without(self, rows: IntArray, feature: IntArray) -> BoolArray:
        """Return which examples (E,) are predicted correctly when one feature of each is removed; -1 removes none."""
        active = np.where(feature >= 0, self.features[rows, np.maximum(feature, 0)].astype(np.float64), 0.0)
        logits = self.logits[rows] - active[:, None] * self.weight[:, feature].T
        return np.asarray(logits.argmax(axis=1) == self.labels[rows])

    def changes(self, feature: int, weight: FloatArray) -> tuple[int, int]:
        """Return how many predictions become right, and how many wrong, when a feature loses ``weight`` (K,)."""
        rows = np.flatnonzero(self.features[:, feature])
        lost = self.features[rows, feature].astype(np.float64)[:, None] * weight
        after = (self.logits[rows] - lost).argmax(axis=1) == self.labels[rows]
        before = self.right[rows]
        return int((after & ~before).sum()), int((before & ~after).sum())


def _control(examples: _Predicted, rows: IntArray, candidates: list[IntArray], rng: np.random.Generator) -> FloatArray:
    """Return for each example the share of up to 16 random features whose removal makes its prediction right."""
    drawn = [one if len(one) <= _DRAWS else rng.choice(one, _DRAWS, replace=False) for one in candidates]
    sizes = np.array([len(one) for one in drawn], dtype=np.int64)
    right = np.zeros(len(rows))
    for draw in range(_DRAWS):
        has = np.flatnonzero(sizes > draw)
        chosen = np.array([drawn[e][draw] for e in has.tolist()], dtype=np.int64)
        right[has] += examples.right_without(rows[has], chosen)
    return right / np.maximum(sizes, 1)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    ranks = np.stack([rankdata(first), rankdata(second)]) if len(first) else np.zeros((2, 1))
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = float(np.sqrt(np.square(ranks).sum(axis=1).prod()))
    return float(ranks[0] @ ranks[1]) / scale if scale > 0 else float("nan")
