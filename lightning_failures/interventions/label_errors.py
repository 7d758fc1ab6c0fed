"""Suspected label errors among the examples that an intervention is about to upweight or add.

An example that the model gets wrong is hard, or its label is wrong, and more weight on wrong labels does harm. A label
is suspected if two sources of evidence independent of the model agree with the model against it: the example's
neighbours in CLIP space, and a probe fitted without the example. A hard example of a minority has neighbours of its own
class, and the probe, which uses shape as well as the shortcut, mostly supports its label.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from lightning_failures.core.arrays import as_mask, as_rows, as_vector, unit_vectors
from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.precision import full_precision
from lightning_failures.core.threads import one_thread
from lightning_failures.directions.standardize import mean_and_std
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.folds import join_copies, stratified_group_folds

_ROWS_AT_ONCE = 512  # examples compared at once with ...
_OTHERS_AT_ONCE = 8192  # ... this number of others
_CELLS_AT_ONCE = 1 << 22
_ITERATIONS = 100


@dataclass(frozen=True, eq=False)
class LabelSuspects:
    """The suspected labels, and the evidence on all examples that were checked.

    Attributes:
        suspect: (N,) bool.
        rows: (M,) int64, ascending: the examples that were checked, indices into the caller's N rows. Row m of all
            other attributes belongs to that example.
        labels: (M,) int64, the label in doubt.
        predictions: (M,) int64, the label that the model predicts.
        probability: (M,) float32 in [0, 1], probability of the label by the cross-fitted probe; NaN if undefined,
            because the class has no example outside the fold.
        agreeing: (M,) int64, number of nearest neighbours from other groups whose label is the prediction; -1 if they
            were not searched, because the probe supports the label.
        neighbours: (M, k) int64, the nearest first, indices into the caller's rows; -1 for a missing one.
    """

    suspect: Tensor
    rows: Tensor
    labels: Tensor
    predictions: Tensor
    probability: Tensor
    agreeing: Tensor
    neighbours: Tensor

    def ranked(self) -> Tensor:
        """Return the suspects as indices into :attr:`rows`, the most doubtful first: (S,) int64."""
        found = np.flatnonzero(self.suspect[self.rows].numpy())
        agreeing, probability = self.agreeing.numpy()[found], self.probability.numpy()[found]
        return torch.from_numpy(found[np.lexsort((-agreeing, probability))])


def suspect_labels(
    embeddings: Any,
    labels: Any,
    predictions: Any,
    *,
    groups: Any = None,
    candidates: Any = None,
    neighbours: int = 10,
    agreeing: int = 8,
    below: float = 0.1,
    folds: int = 5,
    probe_size: int = 20_000,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> LabelSuspects:
    """Return the labels that the model, the neighbours in CLIP space and a probe all contradict.

    A label is suspected if at least ``agreeing`` of the example's ``neighbours`` nearest neighbours by cosine, from
    other groups, have the model's prediction as their label, *and* a multinomial logistic regression on the
    standardised embeddings, fitted on other groups, gives its own label a probability less than ``below``. Only a
    candidate that the model got wrong can be suspected, and neighbours are searched only if the probe contradicts the
    label, block by block: memory is that of the embeddings and a few hundred MiB.

    A wrong label that the model has memorized is not found, because the prediction equals the label; but such an
    example does not look like a failure either. Judge a pool together with the training set: join the two and give the
    rows of the pool as ``candidates``.

    Args:
        embeddings: (N, D) float tensor or array, any float dtype, of CLIP. Never the classifier's own latent space:
            there memorized wrong labels lie among the class they name. The embeddings must separate the classes: if the
            shortcut outweighs the class in them, the minority lies among the class that the model predicts, and is
            suspected (``benchmarks/suspects.py`` has the figures).
        labels: (N,) int, some of them wrong.
        predictions: (N,) int, the model's. Only those of the candidates are read.
        groups: (N,) names of the sources. Images of one source share a wrong label, so they are no evidence for each
            other; nor are exact copies of one image. Default: every example is its own source.
        candidates: (N,) bool, the examples to judge; default: all.
        neighbours: Number of nearest neighbours to compare with.
        agreeing: Minimum number of them whose label is the prediction.
        below: Probability of the label in [0, 1] under which the probe contradicts it.
        folds: Number of folds of the probe; they keep groups whole.
        probe_size: Maximum number of examples that the probe of a fold is fitted on, with the same limit for every
            class (``probe_size`` / number of classes), chosen by a hash of the row number.
        seed: Seed of the folds and of that choice; no global generator is used.
        device: Device of the neighbour search, in single precision.

    Returns:
        The suspects, with the evidence.

    Raises:
        DataError: Shapes that do not match, or values that are not finite.
        ConfigurationError: An option outside its range.

    Departure: Northcutt, Jiang and Chuang (Confident Learning, 2021) compare cross-fitted probabilities with a
    threshold of each class; here the model's prediction names the other label and neighbours must confirm it, which
    spares examples that are merely rare.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> true = np.repeat([0, 1], 50)
        >>> x = rng.normal(size=(100, 4)) + 6 * true[:, None]
        >>> labels = true.copy()
        >>> labels[3] = 1
        >>> found = suspect_labels(x, labels, true)
        >>> found.suspect.nonzero().flatten().tolist(), found.agreeing.tolist()
        ([3], [10])
    """
    _check_options(neighbours, agreeing, below, folds, probe_size)
    x = as_rows(embeddings, "embeddings")
    y = as_vector(labels, "labels", len(x))
    predicted = as_vector(predictions, "predictions", len(x))
    if y.dtype.kind != "i" or predicted.dtype.kind != "i":
        raise DataError("labels and predictions must be integers, not names")
    names = np.arange(len(x)) if groups is None else as_vector(groups, "groups", len(x))
    names = join_copies(names, x)
    _, sources = np.unique(names, return_inverse=True)
    judged = np.ones(len(x), dtype=np.bool_) if candidates is None else as_mask(candidates, "candidates", len(x))

    # first witness: the probe, on all candidates that the model got wrong
    wrong = judged & (predicted != y)
    rows = np.flatnonzero(wrong)
    fold = stratified_group_folds(wrong, names, folds=folds, seed=seed)
    with one_thread():
        probability = _cross_fitted(x, y, fold, rows, probe_size, seed)

    # second witness: the neighbours, only of labels that the probe contradicts
    doubted = np.flatnonzero(probability < below)
    nearest = np.full((len(rows), neighbours), -1, dtype=np.int64)
    with full_precision(device):
        nearest[doubted] = _nearest(x, sources, rows[doubted], neighbours, device)
    agrees = (y[nearest] == predicted[rows][:, None]) & (nearest >= 0)
    count = np.full(len(rows), -1, dtype=np.int64)  # -1: not searched
    count[doubted] = agrees[doubted].sum(axis=1)

    suspect = np.zeros(len(x), dtype=np.bool_)
    suspect[rows[count >= agreeing]] = True
    return LabelSuspects(
        suspect=torch.from_numpy(suspect),
        rows=torch.from_numpy(rows),
        labels=torch.from_numpy(y[rows]),
        predictions=torch.from_numpy(predicted[rows]),
        probability=torch.from_numpy(probability),
        agreeing=torch.from_numpy(count),
        neighbours=torch.from_numpy(nearest),
    )


def _cross_fitted(
    x: NDArray[Any], y: NDArray[np.int64], fold: NDArray[np.int64], rows: NDArray[np.int64], size: int, seed: int
) -> NDArray[np.float32]:
    """Return the probability (M,) of each label by the probe of the other folds; NaN if undefined."""
    probability = np.full(len(rows), np.nan, dtype=np.float32)
    if not len(rows):
        return probability
    mean, std = mean_and_std(x)
    scale = np.divide(1.0, std, out=np.zeros_like(std), where=std > 0)

    def standardised(some: NDArray[np.int64]) -> NDArray[np.float32]:
        return ((x[some].astype(np.float32) - mean.astype(np.float32)) * scale).astype(np.float32)

    for k in np.unique(fold[rows]):
        chosen = _capped(y, np.flatnonzero(fold != k), size, seed)
        if not len(chosen) or np.ptp(y[chosen]) == 0:  # a probe needs two classes
            continue
        probe = LogisticRegression(max_iter=_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an approximate solution is good enough
            probe.fit(standardised(chosen), y[chosen])
        held_out = np.flatnonzero(fold[rows] == k)
        held_out = held_out[np.isin(y[rows[held_out]], probe.classes_)]
        for some in _pieces(held_out, _CELLS_AT_ONCE // (x.shape[1] + len(probe.classes_))):
            column = np.searchsorted(probe.classes_, y[rows[some]])
            probability[some] = probe.predict_proba(standardised(rows[some]))[np.arange(len(some)), column]
    return probability


def _capped(y: NDArray[np.int64], rows: NDArray[np.int64], size: int, seed: int) -> NDArray[np.int64]:
    """Return at most ``size`` / classes of the rows of every class, those with the smallest hashes, ascending."""
    if len(rows) <= size:
        return rows
    order = rows[np.lexsort((stable_hash(rows, seed), y[rows]))]
    _, start, member = np.unique(y[order], return_index=True, return_inverse=True)
    rank = np.arange(len(order)) - start[member]
    return np.sort(order[rank < max(size // len(start), 1)])


def _nearest(
    x: NDArray[Any], sources: NDArray[np.int64], rows: NDArray[np.int64], k: int, device: str | torch.device
) -> NDArray[np.int64]:
    """Return the k nearest rows by cosine from other sources of each of ``rows``, (M, k); -1 if there are fewer."""
    found = np.full((len(rows), k), -1, dtype=np.int64)
    for block in _pieces(np.arange(len(rows)), _ROWS_AT_ONCE):
        mine = _unit_on_device(x[rows[block]], device)
        source = torch.from_numpy(sources[rows[block]]).to(device)
        best = torch.full((len(block), k), -torch.inf, device=device)
        place = torch.full((len(block), k), -1, device=device)
        for start in range(0, len(x), _OTHERS_AT_ONCE):
            stop = min(start + _OTHERS_AT_ONCE, len(x))
            similarity = mine @ _unit_on_device(x[start:stop], device).T
            similarity[source[:, None] == torch.from_numpy(sources[start:stop]).to(device)] = -torch.inf
            values, index = similarity.topk(min(k, stop - start), dim=1)
            best, order = torch.cat([best, values], dim=1).topk(k, dim=1)
            place = torch.cat([place, index + start], dim=1).gather(1, order)
        place[best == -torch.inf] = -1
        found[block] = place.cpu().numpy()
    return found


def _unit_on_device(block: NDArray[Any], device: str | torch.device) -> Tensor:
    """Return the unit vectors of rows (n, D) as float32 on a device."""
    return unit_vectors(torch.from_numpy(block.astype(np.float32)).to(device))


def _pieces(items: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [items[start : start + max(size, 1)] for start in range(0, len(items), max(size, 1))]


def _check_options(neighbours: int, agreeing: int, below: float, folds: int, probe_size: int) -> None:
    for name, valid, allowed, value in (
        ("neighbours", neighbours >= 1, ">= 1", neighbours),
        ("agreeing", 1 <= agreeing <= neighbours, f"in 1 ... {neighbours} (neighbours)", agreeing),
        ("below", 0 <= below <= 1, "in 0 ... 1", below),
        ("folds", folds >= 2, ">= 2", folds),
        ("probe_size", probe_size >= 1, ">= 1", probe_size),
    ):
        if not valid:
            raise ConfigurationError(f"suspect_labels: {name} must be {allowed}; got {value!r}.")
