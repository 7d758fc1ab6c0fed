"""A new last layer: multinomial logistic regression on penultimate features, flagged and unflagged of equal mass.

A network that relies on a shortcut often still has features of what counts; only its last layer weighs them wrongly.
The refit gives every group of examples, class x flag, the same mass, so that the shortcut, which fails on the flagged,
no longer pays.

Source: Kirichenko et al., Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations, ICLR 2023,
section 6 (DFR). Departures: groups come from the flags of failure directions instead of annotations; they are weighted
instead of subsampled, which uses all examples; and the penalty is L2 instead of L1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from torch import Tensor

from lightning_failures.core.arrays import as_mask, as_rows, as_vector
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.precision import full_precision
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.directions.standardize import Moments
from lightning_failures.errors import DataError

PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)
"""L2 penalties that cross-validation chooses from, descending."""

MAX_FACTOR = 20.0
"""Largest weight of a flagged example, in units of the weight of the others of its class."""

MIN_GROUP = 10
"""Minimum number of examples of a group that is weighted and counts as the worst."""

_CELLS_AT_ONCE = 1 << 22  # features of a block that is widened to float32
_CELLS_IN_MEMORY = 1 << 28  # features that are standardized once, and kept in memory as float32
_RANK = 64  # principal components of the features that the penalty is chosen on
_ROUGH = {"maxiter": 12, "gtol": 1e-3}  # of the solver while the penalty is chosen; gtol: largest gradient component
_FINE = {"maxiter": 500, "gtol": 3e-4}


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
    folds: int = 3,
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

    The penalty is chosen by cross-validation on the first 64 principal components, which makes it many times as fast,
    and the head is fitted to all features. It is the one with the smallest mean cross-entropy in the worst group (class
    x flag, at least 10 examples); among those that are worse by less than one standard error, the one with the smallest
    mean over groups. The cross-entropy varies less than the accuracy of a group of a few examples.

    The features may be float16 and mapped from disk; only blocks of them, and their principal components, are in memory
    if all of them do not fit into 1 GiB.

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
    ...     return min(right[odd].mean(), right[~odd].mean())
    >>> bool(worst(fit_head(x, y)) < 0.5), bool(worst(fit_head(x, y, odd)) > 0.8)
    (True, True)
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
    moments = Moments.joined([Moments.of(block) for block in _row_blocks(rows)])
    mean, std = moments.mean, moments.std
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)
    on_device = torch.from_numpy(targets).to(device)
    blocks = _standardized_blocks(rows, mean, scale, torch.device(device))
    problem = _Problem(blocks, rows.shape[1], on_device, n_classes)

    names, group, sizes = np.unique(code, return_inverse=True, return_counts=True)
    chosen, start = 0, None
    accuracy = np.full((len(grid), 1), np.nan)
    with full_precision(device):
        if len(grid) > 1:
            counted = np.flatnonzero(sizes >= MIN_GROUP) if (sizes >= MIN_GROUP).any() else np.arange(len(names))
            sources = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
            small, basis = problem.reduced(_RANK, seed)
            losses, right = _cross_validate(small, on_device, mass, _folds(code, sources, folds, seed), grid)
            chosen = _choose(losses, group, counted)
            accuracy = _group_means(right, group, counted)
            head, _ = small.solve(mass, grid[chosen], None, _ROUGH)
            start = np.column_stack([head[:, :-1] @ basis.cpu().numpy().T, head[:, -1]])
        head, converged = problem.solve(mass, grid[chosen], start, _FINE)
    weight = head[:, :-1] * scale  # for raw features
    return HeadFit(
        weight,
        head[:, -1] - weight @ mean,
        grid[chosen],
        grid,
        tuple(accuracy.min(axis=1).tolist()),
        tuple(accuracy.mean(axis=1).tolist()),
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

    >>> int(random_flags(np.array([0, 0, 0, 1]), np.array([True, True, False, False]), seed=0).sum())
    2
    """
    draw = np.random.default_rng(seed).random(len(labels))
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for k in np.unique(labels[flagged]):
        rows = np.flatnonzero(labels == k)
        chosen[rows[np.argsort(draw[rows])[: int(flagged[rows].sum())]]] = True
    return chosen


class _Problem:
    """Standardized features z, in blocks, and the fit of a head to them with any masses."""

    def __init__(self, blocks: Callable[[], Iterator[Tensor]], dim: int, labels: Tensor, n_classes: int) -> None:
        self._blocks, self._dim, self._labels, self._n_classes = blocks, dim, labels, n_classes

    def numbered(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield the rows of a block, and the block."""
        first = 0
        for block in self._blocks():
            yield slice(first, first + len(block)), block
            first += len(block)

    def reduced(self, rank: int, seed: int) -> tuple[_Problem, Tensor]:
        """Return the problem on the first principal components of z, and their basis (D, R), by subspace iteration."""
        if self._dim <= rank:
            return self, torch.eye(self._dim, device=self._labels.device)
        generator = torch.Generator().manual_seed(seed)
        basis = torch.randn(self._dim, rank, generator=generator).to(self._labels.device)
        for _ in range(2):
            basis = torch.linalg.qr(basis)[0]
            basis = torch.stack([block.T @ (block @ basis) for block in self._blocks()]).sum(0)
        basis = torch.linalg.qr(basis)[0]
        parts = [block @ basis for block in self._blocks()]
        return _Problem(lambda: iter(parts), rank, self._labels, self._n_classes), basis

    def solve(
        self, mass: FloatArray, penalty: float, start: FloatArray | None, options: Mapping[str, float]
    ) -> tuple[FloatArray, bool]:
        """Return the minimizer (K, D + 1), the bias last, for masses (N,); and whether the solver converged."""
        shape = (self._n_classes, self._dim + 1)
        weights = torch.from_numpy(mass).float().to(self._labels.device)

        def objective(flat: FloatArray) -> tuple[float, FloatArray]:
            head = torch.from_numpy(flat.reshape(shape)).float().to(self._labels.device)
            loss, gradient = 0.0, np.zeros(shape)
            for where, z in self.numbered():
                log_p = _log_probabilities(head, z)
                target, m = self._labels[None, where], weights[where]
                loss -= float(log_p.gather(0, target)[0].double() @ m.double())
                residual = log_p.exp_().mul_(m)
                residual.scatter_add_(0, target, -m[None])
                gradient[:, :-1] += (residual @ z).double().cpu().numpy()
                gradient[:, -1] += residual.double().sum(1).cpu().numpy()
            w = flat.reshape(shape)[:, :-1]
            gradient[:, :-1] += penalty * w
            return loss + penalty / 2 * float((w * w).sum()), gradient.ravel()

        first = np.zeros(shape) if start is None else start
        all_options = {"ftol": 1e-12, "maxcor": 20, **options}
        found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=all_options)
        return found.x.reshape(shape), bool(found.success)

    def log_probabilities(self, head: FloatArray) -> Tensor:
        """Return the logarithms of the predicted probabilities, (K, N)."""
        layer = torch.from_numpy(head).float().to(self._labels.device)
        return torch.cat([_log_probabilities(layer, z) for _, z in self.numbered()], dim=1)


def _log_probabilities(head: Tensor, z: Tensor) -> Tensor:
    """Return the logarithms of the probabilities (K, n) of rows (n, D) by a head (K, D + 1).

    With the classes first, the softmax runs along many examples at once: several times as fast for a few classes.
    """
    return torch.addmm(head[:, -1:], head[:, :-1], z.T).log_softmax(0)


def _standardized_blocks(
    rows: FeatureRows, mean: FloatArray, scale: FloatArray, device: torch.device
) -> Callable[[], Iterator[Tensor]]:
    """Return what yields blocks of standardized features, kept in memory if they are few."""
    offset, factor = (torch.from_numpy(one).float().to(device) for one in (mean, scale))

    def blocks() -> Iterator[Tensor]:
        for block in _row_blocks(rows):
            yield torch.from_numpy(np.array(block)).to(device).float().sub_(offset).mul_(factor)

    if rows.shape[0] * rows.shape[1] > _CELLS_IN_MEMORY:
        return blocks
    kept = list(blocks())
    return lambda: iter(kept)


def _cross_validate(
    problem: _Problem, labels: Tensor, mass: FloatArray, fold: IntArray, grid: Sequence[float]
) -> tuple[FloatArray, BoolArray]:
    """Return the cross-entropy (P, N) of each example by the fit without its fold, and whether it is right."""
    losses, right = np.empty((len(grid), len(fold))), np.empty((len(grid), len(fold)), dtype=np.bool_)
    for k in np.unique(fold):
        held_out = fold == k
        fitting = np.where(held_out, 0.0, mass)
        start = None
        for p, penalty in enumerate(grid):
            start, _ = problem.solve(fitting / fitting.sum(), penalty, start, _ROUGH)
            log_p = problem.log_probabilities(start)
            losses[p, held_out] = -log_p.gather(0, labels[None])[0].cpu().numpy()[held_out]
            right[p, held_out] = (log_p.argmax(0) == labels).cpu().numpy()[held_out]
    return losses, right


def _choose(losses: FloatArray, group: IntArray, counted: IntArray) -> int:
    """Return the index of the penalty whose worst group has the smallest loss, within noise that of the best mean.

    Args:
        losses: (P, N) cross-validated.
        group: (N,) int64.
        counted: The groups that count.
    """
    by_group = _group_means(losses, group, counted)  # (P, G)
    worst, mean = by_group.max(axis=1), by_group.mean(axis=1)
    best = int(worst.argmin())
    rows = group == counted[by_group[best].argmax()]
    excess = losses[:, rows] - losses[best, rows]
    noise = excess.std(axis=1) / np.sqrt(rows.sum())
    within = worst - worst[best] <= noise
    return int(np.flatnonzero(within)[mean[within].argmin()])


def _group_means(values: NDArray[Any], group: IntArray, counted: IntArray) -> FloatArray:
    """Return the means (P, G) of values (P, N) over groups."""
    sizes = np.bincount(group)[counted]
    return np.stack([np.bincount(group, weights=row)[counted] / sizes for row in values])


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
