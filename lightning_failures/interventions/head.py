"""A new last layer: multinomial logistic regression on penultimate features, flagged and unflagged of equal mass.

A network that relies on a shortcut often still has features of what counts; only its last layer weighs them wrongly.
The refit gives every group of examples, class x flag, the same mass, so that the shortcut, which fails on the flagged,
no longer pays.

Source: Kirichenko et al., Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations, ICLR 2023,
section 6 (DFR). Departures: groups come from the flags of failure directions instead of annotations; they are weighted
instead of subsampled, which uses all examples; and the penalty is L2 instead of L1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor

from lightning_failures.core.arrays import as_mask, as_rows, as_vector
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.standardize import Moments
from lightning_failures.errors import DataError

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""L2 penalties that cross-validation chooses from, descending."""

MAX_FACTOR = 20.0
"""Largest weight of a flagged example, in units of the weight of the others of its class."""

MIN_GROUP = 10
"""Minimum number of examples of a group that is weighted and counts as the worst."""

_CELLS_AT_ONCE = 1 << 22  # features of a block that is widened to float32
_CELLS_IN_MEMORY = 1 << 28  # features that are standardized once, and kept in memory as float32
_RANDOM_FLAGS = 0xF1A6  # a stream of its own: whoever made the data may have used the seed too
_ITERATIONS = 500
_TOLERANCE = 1e-5  # largest component of the gradient; the loss is a mean over examples


class FeatureRows(Protocol):
    """Features (N, D) that are read in blocks of rows: an array, or :class:`~.feature_store.StoredFeatures`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Return some rows as floats (n, D)."""
        ...


@dataclass(frozen=True, eq=False)
class HeadFit:
    """A last layer, ``features @ weight.T + bias``, and how its penalty was chosen.

    Attributes:
        weight: (K, D) float64, for raw features.
        bias: (K,) float64.
        penalty: The penalty of the fit.
        penalties: P penalties that were tried, descending.
        worst_group: P cross-validated accuracies of the worst group, in [0, 1]; NaN if there was no cross-validation.
        mean_group: P cross-validated accuracies, averaged over groups.
        groups: (G, 2) int64, class and flag of the groups.
        sizes: (G,) int64, their numbers of examples.
        converged: Whether the solver reached its tolerance.
    """

    weight: FloatArray
    bias: FloatArray
    penalty: float
    penalties: tuple[float, ...] = ()
    worst_group: tuple[float, ...] = ()
    mean_group: tuple[float, ...] = ()
    groups: IntArray | None = None
    sizes: IntArray | None = None
    converged: bool = True

    def logits(self, features: Any) -> FloatArray:
        """Return the logits (N, K) float64 of features (N, D)."""
        return head_logits(self.weight, self.bias, _as_rows(features))


def head_logits(weight: FloatArray, bias: FloatArray, features: FeatureRows) -> FloatArray:
    """Return the logits (N, K) of features (N, D) by a last layer of weight (K, D) and bias (K,), block by block."""
    parts = [block.astype(np.float64) @ weight.T + bias for block in _row_blocks(features)]
    return np.concatenate(parts) if parts else np.empty((0, len(bias)))


def fit_head(
    features: Any,
    labels: Any,
    flagged: Any = None,
    *,
    classes: int | None = None,
    max_factor: float = MAX_FACTOR,
    penalties: Sequence[float] = PENALTIES,
    folds: int = 5,
    groups: Any = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> HeadFit:
    r"""Fit a last layer to penultimate features.

    Minimizes, over the weights W of standardized features z and the biases b,

        sum_i m_i * cross_entropy(W z_i + b, y_i) + penalty / 2 * |W|^2,    sum_i m_i = 1.

    With flags every class has the same mass; the flagged and the unflagged examples of a class share it equally, if
    there are at least 10 of each, and if no flagged example then counts more than ``max_factor`` times as much as the
    others of its class. Without flags all examples have the same mass, as in plain training.

    The penalty is the one with the best cross-validated accuracy in the worst group (class x flag, at least 10
    examples), then the best mean over groups, then the largest. The features may be float16 and mapped from disk; only
    blocks of them are in memory if all of them do not fit into 1 GiB.

    Args:
        features: (N, D) floats; or an object with ``shape`` that returns blocks of rows, as read from disk.
        labels: (N,) int, 0 ... K - 1.
        flagged: (N,) bool, or None for a uniform head.
        classes: K; default: the largest label + 1.
        max_factor: Largest weight of a flagged example, in units of that of the others of its class, at least 1.
        penalties: L2 penalties > 0; a single one is used without cross-validation.
        folds: Number of folds of the cross-validation, at least 2.
        groups: (N,) sources of the examples, which share a fold; default: each example is its own.
        seed: Seed of the folds.
        device: Device of the products.

    Raises:
        DataError: Shapes that do not match, features that are not finite, or labels outside 0 ... K - 1.

    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(400) % 2
    >>> odd = np.arange(400) % 20 < 2                      # the shortcut fails on one in ten
    >>> cue, shortcut = 2.0 * y - 1, np.where(odd, -1, 1) * (2.0 * y - 1)
    >>> x = np.stack([cue + rng.normal(size=400), 3 * shortcut + rng.normal(size=400)], axis=1)
    >>> def worst(fit):
    ...     right = fit.logits(x).argmax(1) == y
    ...     return round(float(min(right[odd].mean(), right[~odd].mean())), 1)
    >>> worst(fit_head(x, y)), worst(fit_head(x, y, odd))
    (0.4, 0.8)
    """
    rows = _as_rows(features)
    n = rows.shape[0]
    targets = as_vector(labels, "labels", n).astype(np.int64)
    flags = None if flagged is None else as_mask(flagged, "flagged", n)
    n_classes = int(targets.max(initial=-1)) + 1 if classes is None else classes
    if not n or targets.min() < 0 or targets.max() >= n_classes:
        raise DataError(f"labels must be 0 ... {n_classes - 1}, for at least one example.")
    if not penalties or min(penalties) <= 0:
        raise DataError(f"penalties must be > 0; got {penalties}.")
    if max_factor < 1:
        raise DataError(f"max_factor must be at least 1; got {max_factor}.")
    grid = tuple(sorted({float(one) for one in penalties}, reverse=True))

    code = group_codes(targets, flags)
    mass = group_masses(targets, code, max_factor=max_factor) if flags is not None else np.full(n, 1 / n)
    problem = _Problem(rows, targets, n_classes, torch.device(device))

    # choose the penalty
    worst, mean = np.full(len(grid), np.nan), np.full(len(grid), np.nan)
    best = 0
    if len(grid) > 1:
        sources = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        fold = _folds(code, sources, folds, seed)
        right = _cross_validate(problem, mass, fold, grid)
        names, sizes = np.unique(code, return_counts=True)
        counted = names[sizes >= MIN_GROUP] if (sizes >= MIN_GROUP).any() else names
        accuracy = np.stack([right[:, code == name].mean(axis=1) for name in counted])
        worst, mean = accuracy.min(axis=0), accuracy.mean(axis=0)
        best = int(np.lexsort((np.arange(len(grid)), -mean, -worst))[0])

    # fit on all examples, from the largest penalty to the chosen one
    layer, converged = problem.solve(mass, grid[0])
    for penalty in grid[1 : best + 1]:
        layer, converged = problem.solve(mass, penalty, layer)
    weight, bias = problem.raw(layer)
    names, sizes = np.unique(code, return_counts=True)
    return HeadFit(
        weight,
        bias,
        grid[best],
        grid,
        tuple(worst.tolist()),
        tuple(mean.tolist()),
        np.stack([names // 2, names % 2], axis=1),
        sizes,
        converged,
    )


def group_codes(labels: IntArray, flagged: BoolArray | None) -> IntArray:
    """Return the group of each example, (N,) int64: 2 * class, + 1 if flagged.

    A class without at least 10 flagged and 10 unflagged examples is one group.

    >>> group_codes(np.repeat([0, 1], 20), np.arange(40) < 15)[[0, 10, 15, 30]].tolist()
    [0, 0, 0, 2]
    >>> group_codes(np.repeat([0, 1], 20), np.arange(40) < 10)[[0, 10, 15, 30]].tolist()
    [1, 0, 0, 2]
    """
    code = 2 * labels
    if flagged is None:
        return code
    n_classes = int(labels.max(initial=-1)) + 1
    n_flagged = np.bincount(labels[flagged], minlength=n_classes)
    n_other = np.bincount(labels[~flagged], minlength=n_classes)
    split = (n_flagged >= MIN_GROUP) & (n_other >= MIN_GROUP)
    return np.asarray(code + (flagged & split[labels]))


def group_masses(labels: IntArray, code: IntArray, *, max_factor: float = MAX_FACTOR) -> FloatArray:
    """Return the mass of each example, (N,), sum 1: classes have equal mass, and so have the groups of a class.

    Args:
        labels: (N,) int64.
        code: (N,) groups, see :func:`group_codes`.
        max_factor: Largest mass of a flagged example, in units of that of the others of its class.

    >>> labels, code = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 2])
    >>> group_masses(labels, code).tolist()
    [0.125, 0.125, 0.25, 0.5]
    >>> group_masses(labels, code, max_factor=1.0).round(3).tolist()
    [0.167, 0.167, 0.167, 0.5]
    """
    size = np.bincount(code, minlength=2 * int(labels.max()) + 2).reshape(-1, 2)  # of the unflagged, of the flagged
    factor = np.minimum(size[:, 0] / np.maximum(size[:, 1], 1), max_factor)
    mass = np.where(code % 2 == 1, factor[labels], 1.0)
    of_class = np.bincount(labels, weights=mass)
    return np.asarray(mass / of_class[labels] / np.count_nonzero(of_class))


def random_flags(labels: IntArray, flagged: BoolArray, *, seed: int) -> BoolArray:
    """Flag as many examples of each class as ``flagged`` does, at random: (N,) bool.

    >>> random_flags(np.array([0, 0, 0, 1]), np.array([True, True, False, False]), seed=0).sum()
    np.int64(2)
    """
    draw = np.random.default_rng([seed, _RANDOM_FLAGS]).random(len(labels))
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for k in np.unique(labels[flagged]):
        rows = np.flatnonzero(labels == k)
        chosen[rows[np.argsort(draw[rows])[: int(flagged[rows].sum())]]] = True
    return chosen


class _Problem:
    """Standardized features in blocks, and the fit of a head to them with any masses."""

    def __init__(self, rows: FeatureRows, labels: IntArray, n_classes: int, device: torch.device) -> None:
        moments = Moments.joined([Moments.of(block) for block in _row_blocks(rows)])
        mean, std = moments.mean, moments.std
        self.mean, self.scale = mean, np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
        self._rows, self._device, self.n_classes = rows, device, n_classes
        self._labels = torch.from_numpy(labels).to(device)
        self._offset, self._factor = (torch.from_numpy(one).float().to(device) for one in (self.mean, self.scale))
        self._kept = list(self._blocks()) if rows.shape[0] * rows.shape[1] <= _CELLS_IN_MEMORY else None

    def _blocks(self) -> Iterator[Tensor]:
        for block in _row_blocks(self._rows):
            widened = torch.from_numpy(np.array(block)).to(self._device).float()
            yield widened.sub_(self._offset).mul_(self._factor)

    def _numbered(self) -> Iterator[tuple[slice, Tensor]]:
        first = 0
        for block in self._blocks() if self._kept is None else self._kept:
            yield slice(first, first + len(block)), block
            first += len(block)

    def solve(self, mass: FloatArray, penalty: float, start: FloatArray | None = None) -> tuple[FloatArray, bool]:
        """Return the minimizer (K, D + 1), the bias last, for masses (N,); and whether the solver converged."""
        shape = (self.n_classes, len(self.mean) + 1)
        weights = torch.from_numpy(mass).float().to(self._device)

        def objective(flat: FloatArray) -> tuple[float, FloatArray]:
            head = torch.from_numpy(flat.reshape(shape)).float().to(self._device)
            loss, gradient = 0.0, np.zeros(shape)
            for where, z in self._numbered():
                log_p = torch.addmm(head[:, -1], z, head[:, :-1].T).log_softmax(1)
                target, m = self._labels[where, None], weights[where]
                loss -= float(log_p.gather(1, target)[:, 0].double() @ m.double())
                residual = log_p.exp_().mul_(m[:, None])
                residual.scatter_add_(1, target, -m[:, None])
                gradient[:, :-1] += (residual.T @ z).double().cpu().numpy()
                gradient[:, -1] += residual.double().sum(0).cpu().numpy()
            w = flat.reshape(shape)[:, :-1]
            gradient[:, :-1] += penalty * w
            return loss + penalty / 2 * float((w * w).sum()), gradient.ravel()

        first = np.zeros(shape) if start is None else start
        options = {"maxiter": _ITERATIONS, "gtol": _TOLERANCE, "ftol": 1e-9, "maxcor": 20}
        found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
        return found.x.reshape(shape), bool(found.success)

    def predictions(self, head: FloatArray) -> IntArray:
        """Return the predicted class of every example, (N,) int64."""
        layer = torch.from_numpy(head).float().to(self._device)
        parts = [torch.addmm(layer[:, -1], z, layer[:, :-1].T).argmax(1).cpu().numpy() for _, z in self._numbered()]
        return np.concatenate(parts)

    def raw(self, head: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return weight (K, D) and bias (K,) for raw features."""
        weight = head[:, :-1] * self.scale
        return weight, head[:, -1] - weight @ self.mean


def _cross_validate(problem: _Problem, mass: FloatArray, fold: IntArray, grid: Sequence[float]) -> BoolArray:
    """Return for each penalty whether each example is predicted correctly by the fit without its fold, (P, N) bool."""
    labels = problem._labels.cpu().numpy()
    right = np.zeros((len(grid), len(fold)), dtype=np.bool_)
    for k in np.unique(fold):
        held_out = fold == k
        fitting = np.where(held_out, 0.0, mass)
        start = None
        for p, penalty in enumerate(grid):
            start, _ = problem.solve(fitting / fitting.sum(), penalty, start)
            right[p, held_out] = (problem.predictions(start) == labels)[held_out]
    return right


def _folds(code: IntArray, sources: IntArray, folds: int, seed: int) -> IntArray:
    """Deal whole sources to folds, those of each group in turn: (N,) int64."""
    names, first = np.unique(sources, return_index=True)
    order = np.lexsort((stable_hash(names, seed), code[first]))
    fold_of_source = np.empty(len(names), dtype=np.int64)
    fold_of_source[order] = np.arange(len(names)) % folds
    return fold_of_source[np.searchsorted(names, sources)]


def _as_rows(features: Any) -> FeatureRows:
    """Return an array that was checked, or the caller's own object that reads blocks of rows."""
    is_array = isinstance(features, np.ndarray | Tensor | Sequence)
    return cast(FeatureRows, as_rows(features, "features") if is_array else features)


def _row_blocks(rows: FeatureRows) -> Iterator[NDArray[Any]]:
    size = max(1, _CELLS_AT_ONCE // max(rows.shape[1], 1))
    return (rows[start : start + size] for start in range(0, rows.shape[0], size))
