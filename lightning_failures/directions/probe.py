"""The label probe: a cross-fitted ridge regression of the label on phi, which says whether embeddings support a label.

A failure whose label the probe does not support is *doubted*: its label may be wrong, or its image may be ambiguous.
The members of a subpopulation that training neglected look like their class: the probe supports most of their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.arrays import finite_rows_of
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.standardize import standardize

FOLDS = 3
"""Number of folds; the probe of a fold is fitted on the others."""

REPEATS = 3
"""Number of divisions into folds, whose scores are averaged."""

PENALTY = 1.0
"""Ridge penalty in units of the mean eigenvalue of the second moments of phi."""

MIN_SUPPORT = 0.6
"""Share of the labels that the probe must support, in a class and on average, before it may doubt the others."""

_ROWS_AT_ONCE = 4096
_SCORES_AT_ONCE = 1 << 22

Sums = tuple[FloatArray, FloatArray]
"""Of the fitting examples of each of the F folds of all divisions: second moments (F, D + 1, D + 1) of (1, phi),
averaged in each class and summed over classes, and the averages of (1, phi) by class (F, D + 1, K)."""


def label_margins(
    embeddings: NDArray[Any],
    labels: IntArray,
    sources: IntArray,
    mean: FloatArray,
    std: FloatArray,
    *,
    classes: IntArray,
    rivals: IntArray | None = None,
    seed: int = 0,
    add_up: Callable[[Callable[[], Sums]], Sums] = lambda own: own(),
) -> FloatArray:
    """Return how far the score of each label lies above the score of the best other class, cross-fitted.

    The score of a class is a ridge regression of its indicator on phi, in which all classes have the same weight. It
    needs nothing but averages of classes, so several processes that own some classes each can fit it together.

    Args:
        embeddings: (n, D), of any float dtype.
        labels: (n,) int, members of ``classes``.
        sources: (n,) int, sources of the examples; those of one source share a fold.
        mean: (D,) of phi.
        std: (D,) of phi.
        classes: (K,) int, ascending: the classes of all processes.
        rivals: (K,) int. A class is compared with the classes of the same number (in multilabel tasks, having a
            condition and not having it). Default: with all.
        seed: Seed of the folds.
        add_up: Returns the sums over all processes, given a function that computes those of this one.

    Returns:
        (n,) float64; negative if the embedding speaks for another class. NaN where there is no other class, where all
        examples of the class lie in one fold, and where phi is not finite.

    >>> rng = np.random.default_rng(0)
    >>> true = np.arange(300) % 2
    >>> x = rng.normal(size=(300, 4)) + 4 * true[:, None]
    >>> labels = true.copy()
    >>> labels[7] = 0
    >>> margins = label_margins(x, labels, np.arange(300), x.mean(0), x.std(0), classes=np.arange(2))
    >>> np.flatnonzero(margins < 0).tolist()
    [7]
    """
    column = np.searchsorted(classes, labels)
    compared = np.zeros(len(classes), dtype=np.int64) if rivals is None else rivals
    margins = np.full(len(labels), np.nan)
    for number in np.unique(compared):
        together = np.flatnonzero(compared == number)  # columns of the classes that compete
        rows = np.flatnonzero(np.isin(column, together))
        examples = _Examples(embeddings, rows, np.searchsorted(together, column[rows]), sources[rows], mean, std)
        divisions = [
            (stable_hash(examples.sources, seed * REPEATS + repeat) % np.uint64(FOLDS)).astype(np.int64)
            for repeat in range(REPEATS)
        ]
        solved = _solve(*add_up(partial(_sums, examples, divisions, len(together))))
        probes = np.split(solved, REPEATS)
        margins[rows] = _margins(examples, divisions, probes)
    return margins


def class_support(margins: FloatArray, labels: IntArray) -> FloatArray:
    """Return the share of the labels of each class, ascending, that the probe supports: (K,) in [0, 1].

    Args:
        margins: (n,) label margins; NaN: not judged.
        labels: (n,) int.

    >>> class_support(np.array([1.0, -1.0, 1.0, np.nan, 1.0]), np.array([0, 0, 1, 1, 1])).tolist()
    [0.5, 1.0]
    """
    _, code = np.unique(labels, return_inverse=True)
    judged = np.isfinite(margins)
    return np.bincount(code, judged & (margins >= 0)) / np.maximum(np.bincount(code, judged), 1)


def doubted_labels(margins: FloatArray, labels: IntArray, mean_support: float | None = None) -> BoolArray:
    """Return which labels are in doubt, (n,) bool: those with a negative margin, if the probe knows the classes.

    Embeddings that do not tell classes apart speak against most labels, and so against none. Whether the probe knows a
    class depends on all its examples, whatever the model answers, so doubts leave correctness exchangeable.

    Args:
        margins: (n,) label margins; NaN: not in doubt.
        labels: (n,) int.
        mean_support: Mean of :func:`class_support` over all classes, if these are only some of them.

    >>> doubted_labels(np.array([1.0, 1.0, -1.0, 1.0, 1.0, 1.0]), np.array([0, 0, 0, 1, 1, 1])).tolist()
    [False, False, True, False, False, False]
    """
    support = class_support(margins, labels)
    mean = (support.mean() if len(support) else 0.0) if mean_support is None else mean_support
    return np.asarray((margins < 0) & _known(support, mean)[np.unique(labels, return_inverse=True)[1]])


def _known(support: FloatArray, mean_support: float) -> BoolArray:
    """Return which classes the probe knows, (K,) bool, by the share of their labels that it supports."""
    return np.asarray((support >= MIN_SUPPORT) & (mean_support >= MIN_SUPPORT))


@dataclass(frozen=True)
class LabelProbe:
    """A probe of the labels of other examples than those that it was fitted on.

    Attributes:
        classes: (K,) int64, ascending.
        weight: (D + 1, K) float32, of (1, phi).
        known: (K,) bool, the classes that the probe knows, see :func:`doubted_labels`; it doubts no label of another.
        mean: (D,) of phi.
        std: (D,) of phi.
    """

    classes: IntArray
    weight: NDArray[np.float32]
    known: BoolArray
    mean: FloatArray
    std: FloatArray

    def margins(self, embeddings: NDArray[Any], labels: IntArray) -> tuple[FloatArray, IntArray]:
        """Return how far the score of each label lies above that of the best other class, and that class.

        Args:
            embeddings: (n, D), of any float dtype.
            labels: (n,) int.

        Returns:
            (n,) float64; NaN for a label of a class that the probe does not know. (n,) int64, the best other class.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            phi = standardize(embeddings, self.mean.astype(np.float32), self.std.astype(np.float32))
            scores = (self.weight[0] + phi @ self.weight[1:]).astype(np.float64)
        column = np.searchsorted(self.classes, labels).clip(max=len(self.classes) - 1)
        judged = (self.classes[column] == labels) & self.known[column] & finite_rows_of(scores)
        own = scores[np.arange(len(labels)), column]
        scores[np.arange(len(labels)), column] = -np.inf
        rival = scores.argmax(axis=1)
        margins = own - scores[np.arange(len(labels)), rival]
        return np.where(judged, margins, np.nan), self.classes[rival]


def fit_label_probe(
    embeddings: NDArray[Any], labels: IntArray, sources: IntArray, mean: FloatArray, std: FloatArray, *, seed: int = 0
) -> LabelProbe | None:
    """Fit the probe of :func:`label_margins` to all examples, to judge labels of others.

    A probe of the validation set can judge the labels of the training set; fitted on that, it would have learned its
    shortcuts.

    Args:
        embeddings: (n, D), of any float dtype.
        labels: (n,) int.
        sources: (n,) int, sources of the examples.
        mean: (D,) of phi.
        std: (D,) of phi.
        seed: Seed of the folds by which the probe is found to know a class.

    Returns:
        None with fewer than two classes.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(300) % 2
    >>> x = rng.normal(size=(300, 4)) + 4 * labels[:, None]
    >>> probe = fit_label_probe(x, labels, np.arange(300), x.mean(0), x.std(0))
    >>> margins, rival = probe.margins(np.array([[4.0] * 4, [4.0] * 4]), np.array([1, 0]))
    >>> (margins < 0).tolist(), rival.tolist()
    ([False, True], [0, 1])
    """
    classes = np.unique(labels)
    if len(classes) < 2:
        return None
    support = class_support(label_margins(embeddings, labels, sources, mean, std, classes=classes, seed=seed), labels)
    known = _known(support, float(support.mean()))
    rows = np.arange(len(labels))
    examples = _Examples(embeddings, rows, np.searchsorted(classes, labels), sources, mean, std)
    nowhere = np.full(len(labels), -1)  # no example lies in a fold, so the probe of each is fitted to all
    weight = _solve(*_sums(examples, [nowhere], len(classes), folds=1))[0]
    return LabelProbe(classes, weight, known, mean, std)


class _Examples:
    """The examples of the classes that compete, as (1, phi), one class after the other."""

    def __init__(
        self,
        embeddings: NDArray[Any],
        rows: IntArray,
        column: IntArray,
        sources: IntArray,
        mean: FloatArray,
        std: FloatArray,
    ) -> None:
        self._embeddings, self._rows = embeddings, rows
        with np.errstate(over="ignore"):  # phi is then not finite, and the fit refuses it
            self._mean, self._std = mean.astype(np.float32), std.astype(np.float32)
        self.column, self.sources = column, sources
        self._order = np.argsort(column, kind="stable")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        """Number of columns: D + 1."""
        return len(self._mean) + 1

    def blocks(self) -> Iterator[tuple[IntArray, NDArray[np.float32]]]:
        """Yield indices (m,) of some examples, one class after the other, and their (1, phi), (m, D + 1)."""
        for start in range(0, len(self._order), _ROWS_AT_ONCE):
            yield self.features(self._order[start : start + _ROWS_AT_ONCE])

    def features(self, some: IntArray) -> tuple[IntArray, NDArray[np.float32]]:
        """Return those of some examples that have a finite phi, and their (1, phi), (m, D + 1)."""
        with np.errstate(over="ignore", invalid="ignore"):
            phi = standardize(self._embeddings[self._rows[some]], self._mean, self._std)
        finite = finite_rows_of(phi)  # others would spoil the sums of all
        some, phi = some[finite], phi[finite]
        return some, np.hstack([np.ones((len(some), 1), np.float32), phi])


def _sums(examples: _Examples, divisions: list[IntArray], n_classes: int, folds: int = FOLDS) -> Sums:
    """Return the sums of the own examples, by the folds of all divisions."""
    # each class has weight 1, shared equally by its examples outside the fold
    size = np.bincount(examples.column, minlength=n_classes)
    outside = [
        size - np.bincount(examples.column[fold == held], minlength=n_classes)
        for fold in divisions
        for held in range(folds)
    ]
    weights = [1.0 / np.maximum(count, 1.0) for count in outside]
    dim = examples.dim
    moments, averages = np.zeros((len(weights), dim, dim)), np.zeros((len(weights), dim, n_classes))
    second = np.empty((dim, dim), dtype=np.float32)
    for some, x in examples.blocks():
        column = examples.column[some]
        kept = np.stack([fold[some] != held for fold in divisions for held in range(folds)])
        weight = np.stack([of_class[column] for of_class in weights]) * kept
        for total, inside, its_weight in zip(moments, kept, weight, strict=True):
            scaled = x[inside] * np.sqrt(its_weight[inside], dtype=np.float32)[:, None]
            total += np.matmul(scaled.T, scaled, out=second)
        bounds = np.flatnonzero(np.diff(column, prepend=-1))
        for start, stop in pairwise([*bounds.tolist(), len(some)]):
            averages[:, :, column[start]] += weight[:, start:stop].astype(np.float32) @ x[start:stop]
    return moments, averages


def _solve(moments: FloatArray, averages: FloatArray) -> NDArray[np.float32]:
    """Return the probes (F, D + 1, K): NaN for a class without examples outside the fold."""
    probes = np.empty(averages.shape, dtype=np.float32)
    for fold, (second, average) in enumerate(zip(moments, averages, strict=True)):
        diagonal = np.diagonal(second)[1:]
        penalty = np.full(len(second), PENALTY * max(diagonal.mean() if len(diagonal) else 0.0, 1e-12))
        penalty[0] = 1e-12  # the intercept is free
        probes[fold] = np.linalg.solve(second + np.diag(penalty), average)
        probes[fold][:, average[0] == 0] = np.nan
    return probes


def _margins(examples: _Examples, divisions: list[IntArray], probes: list[NDArray[np.float32]]) -> FloatArray:
    """Return the margins of the own examples, from scores that are averaged over the divisions.

    Examples whose folds are the same in all divisions are scored together, by the sum of the probes of these folds.
    """
    margins = np.full(len(examples), np.nan)
    size = max(1, min(_ROWS_AT_ONCE, _SCORES_AT_ONCE // probes[0].shape[2]))
    folds, of_example = np.unique(np.stack(divisions, axis=1), axis=0, return_inverse=True)
    for code, held in enumerate(folds):
        members = np.flatnonzero(of_example.ravel() == code)
        total = np.sum([probe[k] for probe, k in zip(probes, held, strict=True)], axis=0)
        for start in range(0, len(members), size):
            some, x = examples.features(members[start : start + size])
            scores = x @ total
            own = (np.arange(len(some)), examples.column[some])
            of_label = scores[own]
            scores[np.isnan(scores)] = -np.inf
            scores[own] = -np.inf
            others = scores.max(axis=1, initial=-np.inf)
            margins[some] = np.where(np.isfinite(others), (of_label - others) / len(probes), np.nan)
    return margins
