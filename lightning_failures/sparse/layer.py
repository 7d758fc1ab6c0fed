"""The sparse layer of a path that is as sparse as its held-out accuracy allows, and its file format.

Source: Wong, Santurkar and Madry, ICML 2021, section 2: the sparsest layer that loses at most five points of accuracy.
Ours: the refit on the support.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_failures.core.arrays import as_rows, as_vector
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.budget import Deadline
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.sparse.blocks import raw_blocks
from lightning_failures.sparse.path import PathOptions, SparsePath, solve_path
from lightning_failures.stats.intervals import wilson_interval

RIDGE = 1e-3
"""Penalty of the refit on the support, for standardized features and the mean cross-entropy."""

_FORMAT = "lightning_failures.sparse_layer/1"
_HELD_OUT_FOLDS = 5


@dataclass(frozen=True, eq=False)
class AccuracyCurve:
    """Accuracy against sparsity, for all layers of a path.

    Attributes:
        lambdas: (L,) float64, descending.
        features_per_class: (L,) float64, the mean number of features with a weight.
        accuracy: (L,) float64, on held-out examples.
    """

    lambdas: Tensor
    features_per_class: Tensor
    accuracy: Tensor

    def chosen(self, max_drop: float) -> int:
        """Return the index of the largest lambda whose accuracy is within ``max_drop`` of the best."""
        within = self.accuracy >= self.accuracy.max() - max_drop - 1e-12
        return int(within.nonzero()[0])


@dataclass(frozen=True, eq=False)
class SparseLayer:
    """A linear layer ``features @ weight.T + bias`` in which every class rests on few features.

    Attributes:
        weight: (K, D) float32, for raw features.
        bias: (K,) float32.
        std: (D,) float32, standard deviation of each feature in the fitting set: ``weight * std`` compares weights.
        curve: Accuracy against sparsity, of the whole path.
        index: Place of this layer in the path.
        held_out: Number of held-out examples of all accuracies.
        refit: Whether the layers of the curve were refitted on their supports.
        effective: Effective number of held-out examples of a balanced accuracy, which the rarest class limits; None:
            all examples count equally.
    """

    weight: Tensor
    bias: Tensor
    std: Tensor
    curve: AccuracyCurve
    index: int
    held_out: int
    refit: bool = False
    effective: float | None = None

    @property
    def features_per_class(self) -> float:
        """Mean number of features with a weight."""
        return float((self.weight != 0).sum(1).double().mean())

    @property
    def accuracy(self) -> float:
        """Accuracy on the held-out examples, which chose the layer."""
        return float(self.curve.accuracy[self.index])

    @property
    def accuracy_interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the accuracy, as if the held-out examples had not chosen the layer."""
        n = self.held_out if self.effective is None else self.effective
        return wilson_interval(self.accuracy * n, n)

    @property
    def dense_accuracy(self) -> float:
        """Held-out accuracy of the layer with the smallest lambda, the least sparse one."""
        return float(self.curve.accuracy[-1])

    def decision(self, features: Any) -> Tensor:
        """Return the logits (N, K) float32 of raw features (N, D)."""
        rows = as_rows(features, "features")
        return torch.from_numpy(_logits(rows, self.weight, self.bias)).float()

    def save(self, path: str | Path) -> None:
        """Write the layer to one safetensors file, atomically; only weights that are not 0 are stored."""
        positions = self.weight.flatten().nonzero()[:, 0]
        tensors = {"positions": positions, "values": self.weight.flatten()[positions]}
        tensors |= {"bias": self.bias.contiguous(), "std": self.std.contiguous()}
        tensors |= {f"curve.{one.name}": getattr(self.curve, one.name) for one in dataclasses.fields(self.curve)}
        numbers = {"index": self.index, "held_out": self.held_out, "refit": self.refit, "effective": self.effective}
        write_atomically(Path(path), save(tensors, {"format": _FORMAT, "numbers": json.dumps(numbers)}))

    @classmethod
    def load(cls, path: str | Path) -> SparseLayer:
        """Read a layer that :meth:`save` wrote.

        Raises:
            DataError: The file has another format or is damaged.
        """
        try:
            return cls._load(path)
        except (OSError, DataError):
            raise
        except Exception as error:  # a damaged file can raise anything
            raise DataError(f"{path} holds no sparse layer ({str(error)[:200]})") from error

    @classmethod
    def _load(cls, path: str | Path) -> SparseLayer:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DataError(f"{path} holds no sparse layer (format {metadata.get('format')!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        curve = AccuracyCurve(**{one.name: tensors[f"curve.{one.name}"] for one in dataclasses.fields(AccuracyCurve)})
        bias, std = tensors["bias"], tensors["std"]
        weight = torch.zeros(len(bias) * len(std))
        weight[tensors["positions"]] = tensors["values"]
        numbers = json.loads(metadata["numbers"])
        return cls(
            weight.reshape(len(bias), len(std)),
            bias,
            std,
            curve,
            int(numbers["index"]),
            int(numbers["held_out"]),
            bool(numbers["refit"]),
            numbers.get("effective"),
        )


def fit_sparse_layer(
    features: Any,
    labels: Any,
    *,
    validation: tuple[Any, Any] | None = None,
    max_drop: float = 0.05,
    refit: bool = False,
    ridge: float = RIDGE,
    balanced: bool = False,
    groups: Any = None,
    sample_weight: Any = None,
    alpha: float = 0.99,
    lambdas: Sequence[float] | None = None,
    n_lambdas: int = 100,
    lambda_ratio: float = 1e-3,
    grouped: bool = False,
    standardize: bool = True,
    seed: int = 0,
    device: str | torch.device = "cpu",
    deadline: Deadline | None = None,
) -> SparseLayer:
    """Fit a path of sparse layers and return the sparsest one within ``max_drop`` of the best held-out accuracy.

    The accuracy of the chosen layer is slightly optimistic, as the held-out examples chose it; the best accuracy, which
    it is compared with, is more so. The path is that of :func:`~lightning_failures.sparse.path.fit_sparse_path`.

    Args:
        features: (N, D) floats, as a matrix or an iterable of blocks.
        labels: (N,) int, 0 ... K - 1.
        validation: Held-out features (M, D), or blocks of them, and labels (M,). None: a fifth of the examples, whole
            groups, stratified by class; the path is fitted to the others.
        max_drop: How far below the best accuracy the layer may lie, >= 0; 0.05 is five points.
        refit: Whether each layer is refitted on its support by ridge regression. It removes the shrinkage of the
            sparse penalty, which helps layers with few features per class.
        ridge: Penalty of the refit.
        balanced: Whether all classes have the same weight, in the fit and in accuracies, which are then means of the
            shares of each class that are right. Where one class is rare, a layer without features has a high accuracy.
        groups: (N,) sources of the examples, which are held out whole; None: each example is its own.
        sample_weight: (N,) >= 0, of the fit; accuracies are not weighted by it.
        alpha: Share of the sparse part of the penalty.
        lambdas: Values > 0, descending; None: ``n_lambdas`` values.
        n_lambdas: Length of the path.
        lambda_ratio: The smallest lambda over the largest.
        grouped: Whether a feature enters for all classes or none.
        standardize: Whether features are divided by their standard deviation.
        seed: Seed of the held-out fifth and of the solver.
        device: Device of the products.
        deadline: Time after which no further layer is fitted: the curve ends there. None: no limit.

    Raises:
        ConfigurationError: An option out of range.
        DataError: See :func:`~lightning_failures.sparse.path.fit_sparse_path`; or no held-out example.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(500, 20))
    >>> layer = fit_sparse_layer(x, x[:, :3].argmax(1), n_lambdas=10, lambda_ratio=0.03)
    >>> layer.weight.abs().sum(0).nonzero()[:, 0].tolist(), layer.accuracy > 0.8
    ([0, 1, 2], True)
    """
    if max_drop < 0:
        raise ConfigurationError(f"max_drop must be >= 0; got {max_drop}.")
    kept_ridge = ridge if refit else None
    options = PathOptions(
        alpha, lambdas, n_lambdas, lambda_ratio, grouped, standardize, kept_ridge, seed, device, deadline, balanced
    )
    y = as_vector(labels, "labels", len(labels)).astype(np.int64)
    fitting = features
    if validation is None:
        held_out = _held_out(y, groups, seed)
        fitting, validation = ChosenRows(features, ~held_out), (ChosenRows(features, held_out), y[held_out])
        y = y[~held_out]
        if sample_weight is not None:
            sample_weight = np.asarray(sample_weight)[~held_out]
    path = solve_path(fitting, y, sample_weight, options)
    right, sizes = _right(path, *validation)
    n, present = int(sizes.sum()), sizes > 0
    accuracy = (right[:, present] / sizes[present]).mean(1) if balanced else right.sum(1) / n
    effective = float(present.sum() ** 2 / (1 / sizes[present]).sum()) if balanced else None
    curve = AccuracyCurve(path.lambdas, path.features_per_class, torch.from_numpy(accuracy))
    index = curve.chosen(max_drop)
    weight, bias = path.layer(index)
    return SparseLayer(weight, bias.clone(), path.std, curve, index, n, refit, effective)


class ChosenRows:
    """Some rows of features, block by block, which starts again each time.

    Args:
        features: (N, D) features, as a matrix or an iterable of blocks.
        chosen: (N,) bool.
    """

    def __init__(self, features: Any, chosen: BoolArray) -> None:
        self._blocks, self._chosen = raw_blocks(features), chosen

    def __iter__(self) -> Iterator[NDArray[Any]]:
        first = 0
        for block in self._blocks():
            chosen = self._chosen[first : first + len(block)]
            if len(chosen) != len(block):
                break
            if chosen.any():
                yield block[chosen]
            first += len(block)
        if first != len(self._chosen):
            raise DataError(f"features must have one row per label, {len(self._chosen)}.")


def _held_out(labels: IntArray, groups: Any, seed: int) -> BoolArray:
    """Return which examples are held out: every fifth group of a class, in random order, (N,) bool."""
    sources = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    names, first = np.unique(sources, return_index=True)
    order = np.lexsort((stable_hash(names, seed), labels[first]))
    place = np.empty(len(names), dtype=np.int64)
    place[order] = np.arange(len(names))
    return np.asarray(place[np.searchsorted(names, sources)] % _HELD_OUT_FOLDS == _HELD_OUT_FOLDS - 1)


def _right(path: SparsePath, features: Any, labels: Any) -> tuple[IntArray, IntArray]:
    """Return how many examples of each class each layer predicts correctly, (L, K), and the sizes of the classes."""
    y = as_vector(labels, "labels of the validation set", len(labels)).astype(np.int64)
    if y.min(initial=0) < 0:
        raise DataError("labels of the validation set must be 0 ... K - 1.")
    classes = max(path.bias.shape[1], int(y.max(initial=-1)) + 1)
    right, first = np.zeros((len(path.lambdas), classes), dtype=np.int64), 0
    for block in raw_blocks(features)():
        rows = as_rows(block, "features of the validation set")
        targets = y[first : first + len(rows)]
        first += len(rows)
        if len(targets) != len(rows):
            break
        for index in range(len(right)):
            hit = _logits(rows, *path.layer(index)).argmax(1) == targets
            right[index] += np.bincount(targets[hit], minlength=classes)
    if first != len(y) or not first:
        raise DataError(
            f"the validation set must have one row of features per label, at least one; got {len(y)} labels."
        )
    return right, np.bincount(y, minlength=classes)


def _logits(rows: NDArray[Any], weight: Tensor, bias: Tensor) -> NDArray[np.float64]:
    """Return the logits (n, K) float64, from the features with a weight alone."""
    used = (weight != 0).any(0).nonzero()[:, 0].numpy()
    columns = rows[:, used].astype(np.float64)
    return np.asarray(columns @ weight[:, used].double().numpy().T + bias.double().numpy())
