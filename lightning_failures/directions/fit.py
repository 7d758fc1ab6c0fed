"""Failure directions: for each class a linear SVM in an embedding space that separates right from wrong.

Source: Jain, Lawrence, Moitra and Madry, Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 3.

``selection="published"`` reproduces the paper's procedure. The default, ``"scaled"``, departs from it where the
published grid is decided by rounding: below a critical value of C every multiplier sits at its bound, the direction is
the class-weighted difference of means, and any bias of an interval is optimal. So the grid is relative to the critical
C of the data at hand, and below it the closed form is taken, with the bias in the middle of its interval; and of scores
that sampling error does not tell apart, the smallest C wins, not the first best.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from sklearn.model_selection import StratifiedKFold
from torch import Tensor

from lightning_failures.core.arrays import as_mask, as_rows, as_vector
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.budget import MAX_GRAM_EXAMPLES, SKIPPED_FOR_TIME, Deadline
from lightning_failures.core.threads import one_thread
from lightning_failures.directions.additional import ADDITIONAL_LEVEL, additional_directions
from lightning_failures.directions.standardize import Moments, standardize
from lightning_failures.directions.svm import SVMFit, centred_gram, fit_published, fit_scaled
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.folds import stratified_group_folds
from lightning_failures.stats.permutation_test import permutation_p_value

Mode = tuple[SVMFit, float]
"""A direction and its p-value."""

MIN_PER_OUTCOME = 10
"""A class with fewer failures, or fewer successes, is skipped."""

DIRECTIONS_FILE = "directions.safetensors"
"""What a run calls the file with the directions of its last report."""

_ENDED = "no further pattern"
_SAME = 1e-6  # of unit vectors
_FORMAT = "lightning_failures.directions/1"


@dataclass(frozen=True, eq=False)
class FailureDirections:
    """One linear SVM a class. A negative decision value predicts a failure (hard), a positive one a success (easy).

    Attributes:
        classes: (K,) int64, the classes that have an SVM, ascending. Row k of all that follows belongs to
            ``classes[k]``.
        weight: (K, D) float32, w.
        bias: (K,) float32, b.
        cv_score: (K,) float64 in [0, 1], mean balanced accuracy over the folds: the strength of the failure mode. C was
            chosen on the same folds, hence it is optimistic: read it with ``p_value``.
        cv_score_stderr: (K,) float64, its binomial standard error in the numbers of failures and successes.
        c: (K,) float64, the C that was chosen.
        p_value: (K,) float64 in (0, 1], screening test of "correctness has nothing to do with the embedding"; NaN
            without permutations.
        mean: (D,) float32, subtracted by phi.
        std: (D,) float32, divided by in phi; 0 for a degenerate dimension, which contributes nothing.
        out_of_fold: (N,) float32 in the order of the caller's rows: the cross-fitted decision value, from the fold that
            did not see the example. NaN in skipped classes.
        skipped: Classes without an SVM, and why.
        whiten: False if phi only scales to unit length.
        further: Further directions (``n_directions > 1``), one result for each rank; each holds the classes that have
            one. Their CV scores are those of telling the failures at one end, which the data chose, from the
            successes: more optimistic than that of the first.
    """

    classes: Tensor
    weight: Tensor
    bias: Tensor
    cv_score: Tensor
    cv_score_stderr: Tensor
    c: Tensor
    p_value: Tensor
    mean: Tensor
    std: Tensor
    out_of_fold: Tensor
    skipped: dict[int, str] = field(default_factory=dict)
    whiten: bool = True
    further: tuple[FailureDirections, ...] = ()

    def row(self, class_index: int) -> int:
        """Return the row k whose SVM belongs to the class with this label.

        Raises:
            DataError: The class has no SVM; the message says why.
        """
        found = (self.classes == int(class_index)).nonzero()
        if not len(found):
            reason = self.skipped.get(int(class_index), "no example of it was seen")
            raise DataError(f"class {int(class_index)} has no failure direction: {reason}")
        return int(found[0])

    def decision_values(self, embeddings: Any, labels: Any) -> Tensor:
        """Return w . phi(x) + b of the SVM of each example's class.

        For the examples that the SVMs were fitted on take :attr:`out_of_fold` instead: these values have seen the
        answer.

        Args:
            embeddings: (N, D) float tensor or array.
            labels: (N,) int.

        Returns:
            (N,) float32, NaN where the class has no SVM.
        """
        x = as_rows(embeddings, "embeddings")
        y = as_vector(labels, "labels", len(x))
        if x.shape[1] != self.weight.shape[1]:
            raise DataError(f"embeddings must have {self.weight.shape[1]} dimensions, got {x.shape[1]}")
        mean, std, weight, bias = (t.double().numpy() for t in (self.mean, self.std, self.weight, self.bias))
        values = np.full(len(x), np.nan, dtype=np.float32)
        row_of = dict(zip(self.classes.tolist(), range(len(self.classes)), strict=True))
        for label, rows in _by_class(y):
            if (k := row_of.get(label)) is not None:
                values[rows] = standardize(x[rows], mean, std) @ weight[k] + bias[k]
        return torch.from_numpy(values)

    def flag(self, embeddings: Any, labels: Any) -> Tensor:
        """Return (N,) bool: decision value < 0. False where the class has no SVM."""
        return self.decision_values(embeddings, labels) < 0

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        ranks = (self, *self.further)
        for rank, directions in enumerate(ranks):
            tensors |= {f"{rank}.{name}": getattr(directions, name).contiguous() for name in _TENSORS}
        metadata = {
            "format": _FORMAT,
            "whiten": json.dumps(self.whiten),
            "skipped": json.dumps([directions.skipped for directions in ranks]),
        }
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> FailureDirections:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is of another kind, or damaged.
        """
        try:
            return cls._load(path)
        except (OSError, DataError):
            raise
        except Exception as error:  # whatever a flipped bit leads to
            raise DataError(f"{path} holds no failure directions ({str(error)[:200]})") from error

    @classmethod
    def _load(cls, path: str | Path) -> FailureDirections:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DataError(f"{path} holds no failure directions (format {metadata.get('format')!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        skipped = [{int(k): str(v) for k, v in reasons.items()} for reasons in json.loads(metadata["skipped"])]
        first, *further = (
            cls(
                **{name: tensors[f"{rank}.{name}"] for name in _TENSORS},
                skipped=reasons,
                whiten=bool(json.loads(metadata["whiten"])),
            )._checked()
            for rank, reasons in enumerate(skipped)
        )
        return dataclasses.replace(first, further=tuple(further))

    def _checked(self) -> FailureDirections:
        """Itself, if its shapes and types agree."""
        k, d = self.weight.shape
        shapes = {"mean": (d,), "std": (d,), "weight": (k, d), "out_of_fold": (self.out_of_fold.numel(),)}
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor.shape != shapes.get(name, (k,)) or tensor.is_floating_point() == (name == "classes"):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}")
        return self


_TENSORS = tuple(f.name for f in dataclasses.fields(FailureDirections) if f.type == "Tensor")


def fit_failure_directions(
    embeddings: Any,
    labels: Any,
    correct: Any,
    *,
    ids: Any = None,
    groups: Any = None,
    reference: Any = None,
    whiten: bool = True,
    cs: Sequence[float] | None = None,
    folds: int = 2,
    selection: Literal["scaled", "published"] = "scaled",
    n_directions: int = 1,
    permutations: int = 999,
    seed: int = 0,
    device: str | torch.device = "cpu",
    classes_in_all: int | None = None,
    deadline: Deadline | None = None,
) -> FailureDirections:
    """Fit one SVM for each class that separates its correct from its failed examples.

    Args:
        embeddings: (N, D) float tensor or array, any float dtype, never written to.
        labels: (N,) int >= 0, the true class of each example.
        correct: (N,) bool, whether the classifier was right.
        ids: (N,) unique names of the examples. Rows are sorted by them first, so that the order in which they come has
            no influence. Default: the row number.
        groups: (N,) names of the sources; examples of one source are kept together in folds and permutations. Default:
            every example is its own source.
        reference: (M, D) embeddings that phi takes mean and standard deviation from (training embeddings where
            available), or the :class:`~lightning_failures.directions.standardize.Moments` of such. Default:
            ``embeddings``.
        whiten: Subtract the mean and divide by the standard deviation. Without it phi scales to unit length only, and w
            is a direction of the encoder's own space (the paper's appendix A.6, for decoders).
        cs: Absolute values of C to choose from. Default: ``selection``'s own grid.
        folds: Number of cross-validation folds.
        selection: ``"scaled"``: 1, 3, 10, 30 and 100 times the critical C (of each training fold; then of all data),
            folds by stratified hash of the group; the smallest C within two standard errors of the best score wins. The
            lower limit of the grid, the difference of means with the bias in the middle of its interval, gives the same
            decisions as 1 x critical C, so it is not tried twice. A class of more than 5,000 examples is fitted on a
            fixed sample of so many, and judged on all.
            ``"published"``: scikit-learn's ``SVC(kernel="linear", class_weight="balanced")``, C from 1e-6 to 1,
            ``cross_val_score(cv=folds, scoring="balanced_accuracy")``, the first best C, refit on all; unshuffled folds
            unless there are groups.
        n_directions: Directions a class, at most. A further one is reported where failures are in excess at both ends
            of what tells them apart from each other: see :mod:`lightning_failures.directions.additional`. Its p-value
            permutes
            correctness within strata of the former ones; the first one with p > 0.05 ends the search.
        permutations: Permutations of the screening test for every class. Classes with p <= 0.01 get at least 20 x the
            number of classes in all, so that one true mode among hundreds can survive Benjamini-Hochberg. 0: no test.
        seed: The only source of randomness; no global generator is used.
        device: Where Gram matrices and the products of the permutations are computed, in single precision.
        classes_in_all: How many classes are tested in all, where these are some of them. Default: those that are here.
        deadline: The classes with the most failures are fitted first; those that are not reached in time are in
            ``skipped``.

    Returns:
        The directions. A class with fewer than 10 failures or 10 successes, or whose sources cannot fill the folds, is
        in ``skipped`` with the reason.

    Raises:
        DataError: Shapes that do not match, values that are not finite, negative labels, an id twice within a class.
        ConfigurationError: An option outside its range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(200, 8))
        >>> correct = x[:, 0] + 0.3 * rng.normal(size=200) > 0
        >>> directions = fit_failure_directions(x, np.zeros(200, dtype=int), correct)
        >>> int(directions.weight[0].abs().argmax()), bool(directions.p_value[0] <= 0.001)
        (0, True)
    """
    _check_options(selection, folds, n_directions, permutations, seed, cs)
    x = as_rows(embeddings, "embeddings")
    n, dim = x.shape
    y = as_vector(labels, "labels", n)
    if n and (y.dtype.kind != "i" or y.min() < 0):
        raise DataError("labels must be integers >= 0")
    right = as_mask(correct, "correct", n)
    names = np.arange(n) if ids is None else as_vector(ids, "ids", n)
    sources = names if groups is None else as_vector(groups, "groups", n)
    published = selection == "published"
    with one_thread():
        mean, std = np.zeros(dim), np.ones(dim)
        if whiten:
            moments = _moments(reference, x, names)
            mean, std = moments.mean, moments.std
        problems, skipped = _problems(y, names, right, sources, folds, seed, unshuffled=published and groups is None)
        in_all = len(problems) if classes_in_all is None else classes_in_all
        search = _Search(published, cs, permutations, 20 * in_all, n_directions, seed, device)
        precision = np.float64 if published else np.float32
        modes: list[tuple[_Problem, list[Mode]]] = []
        for problem in sorted(problems, key=lambda one: int(one.correct.sum() - len(one.correct))):
            if deadline is not None and deadline.passed:
                skipped[problem.label] = SKIPPED_FOR_TIME
                continue
            features = standardize(x[problem.rows], mean.astype(precision), std.astype(precision))
            if np.ptp(features, axis=0).max(initial=0.0) < _SAME:
                skipped[problem.label] = "all its embeddings are the same"
                continue
            modes.append((problem, search.modes(problem, features)))
    modes.sort(key=lambda found: found[0].label)

    shared: dict[str, Any] = {
        "mean": torch.from_numpy(mean.astype(np.float32)),
        "std": torch.from_numpy(std.astype(np.float32)),
        "whiten": whiten,
    }
    ranks = []
    for rank in range(max((len(m) for _, m in modes), default=1)):
        found = [(p, m[rank]) for p, m in modes if len(m) > rank]
        ended = {p.label: _ENDED for p, m in modes if len(m) == rank}
        ranks.append(
            FailureDirections(
                **_stack(found, n, dim), **shared, skipped=ended if rank else dict(sorted(skipped.items()))
            )
        )
    return dataclasses.replace(ranks[0], further=tuple(ranks[1:]))


def join_directions(parts: Sequence[FailureDirections], rows: Sequence[NDArray[np.int64]], n: int) -> FailureDirections:
    """Put together what was fitted on different classes with the same mean and standard deviation.

    Args:
        parts: Fitted on some of the classes each.
        rows: For each part the places of its examples among all n.
        n: Number of examples in all.

    >>> rng = np.random.default_rng(0)
    >>> x, labels = rng.normal(size=(300, 4)), np.arange(300) % 3
    >>> correct = x[:, 0] > 0
    >>> rows = [np.flatnonzero(labels == 1), np.flatnonzero(labels != 1)]
    >>> parts = [fit_failure_directions(x[r], labels[r], correct[r], ids=r, reference=x) for r in rows]
    >>> join_directions(parts, rows, 300).classes.tolist()
    [0, 1, 2]
    """
    ranks = []
    for rank in range(max(1 + len(part.further) for part in parts)):
        found = [_of_rank(part, rank) for part in parts]
        order = torch.argsort(torch.cat([part.classes for part in found]))
        values: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in found])[order] for name in _PER_CLASS
        }
        out_of_fold = torch.full((n,), float("nan"))
        for part, mine in zip(found, rows, strict=True):
            out_of_fold[torch.from_numpy(mine)] = part.out_of_fold
        skipped = dict(sorted(item for part in found for item in part.skipped.items()))
        ranks.append(dataclasses.replace(parts[0], **values, out_of_fold=out_of_fold, skipped=skipped, further=()))
    return dataclasses.replace(ranks[0], further=tuple(ranks[1:]))


_PER_CLASS = ("classes", "weight", "bias", "cv_score", "cv_score_stderr", "c", "p_value")


def _of_rank(directions: FailureDirections, rank: int) -> FailureDirections:
    """The first directions (rank 0) or further ones, none where the search had ended before."""
    ranks = (directions, *directions.further)
    if rank < len(ranks):
        return ranks[rank]
    ended = ranks[-1].classes.tolist() if rank == len(ranks) else []
    none: dict[str, Any] = {name: getattr(directions, name)[:0] for name in _PER_CLASS}
    lacking = torch.full_like(directions.out_of_fold, float("nan"))
    return dataclasses.replace(
        directions, **none, out_of_fold=lacking, skipped=dict.fromkeys(ended, _ENDED), further=()
    )


def _moments(reference: Any, x: NDArray[Any], names: NDArray[Any]) -> Moments:
    """What phi standardises with."""
    if reference is None:  # summed in the order of the ids too: the last bit must not depend on that of the rows
        return Moments.of(x, np.argsort(names, kind="stable"))
    moments = reference if isinstance(reference, Moments) else Moments.of(as_rows(reference, "reference"))
    if len(moments.mean) != x.shape[1]:
        raise DataError(f"reference must have {x.shape[1]} dimensions like embeddings, got {len(moments.mean)}")
    return moments


@dataclass(frozen=True)
class _Problem:
    """The n examples of one class, fold by fold and by id."""

    label: int
    rows: NDArray[np.int64]  # their places among the caller's rows
    correct: NDArray[np.bool_]
    sources: NDArray[Any]
    fold: NDArray[np.int64]


def _problems(
    labels: NDArray[np.int64],
    names: NDArray[Any],
    correct: NDArray[np.bool_],
    sources: NDArray[Any],
    folds: int,
    seed: int,
    *,
    unshuffled: bool,
) -> tuple[list[_Problem], dict[int, str]]:
    """Lay out the classes that can be fitted, and say why the others cannot."""
    problems, skipped = [], {}
    for label, rows in _by_class(labels):
        rows = rows[np.argsort(names[rows], kind="stable")]
        if len(np.unique(names[rows])) < len(rows):
            raise DataError(f"ids must be unique within a class; class {label} has one twice")
        if unshuffled:
            fold = _unshuffled_folds(correct[rows], folds)
        else:
            fold = stratified_group_folds(~correct[rows], sources[rows], folds=folds, seed=seed)
            by_fold = np.argsort(fold, kind="stable")  # folds are blocks of the Gram matrix
            rows, fold = rows[by_fold], fold[by_fold]
        if reason := _why_skipped(correct[rows], fold, folds):
            skipped[label] = reason
        else:
            problems.append(_Problem(label, rows, correct[rows], sources[rows], fold))
    return problems, skipped


@dataclass(frozen=True)
class _Search:
    """How the directions of a class are sought."""

    published: bool
    cs: Sequence[float] | None
    permutations: int
    at_least: int
    most: int
    seed: int
    device: str | torch.device

    def modes(self, problem: _Problem, features: NDArray[Any]) -> list[Mode]:
        """Fit the first direction; where it passes its test, seek others."""
        at_hand = not self.published and len(features) <= MAX_GRAM_EXAMPLES  # else the fit is of a sample
        gram = centred_gram(features, self.device) if at_hand else None
        first = self._fit(features, problem.correct, problem.fold, gram)
        p = permutation_p_value(
            features,
            gram,
            problem.correct,
            problem.sources,
            permutations=self.permutations,
            at_least=self.at_least,
            rng=np.random.default_rng([self.seed, problem.label, 0]),
            device=self.device,
        )
        if self.most == 1 or not p <= ADDITIONAL_LEVEL:
            return [(first, p)]
        further = additional_directions(
            first,
            features,
            problem.correct,
            problem.sources,
            problem.fold,
            fit=self._fit,
            most=self.most - 1,
            permutations=self.permutations,
            seed=(self.seed, problem.label),
        )
        return [(first, p), *further]

    def _fit(
        self,
        features: NDArray[Any],
        correct: NDArray[np.bool_],
        fold: NDArray[np.int64],
        gram: NDArray[Any] | None = None,
    ) -> SVMFit:
        if self.published:
            return fit_published(features, correct, fold, self.cs)
        return fit_scaled(features, correct, fold, self.cs, gram=gram)


def _stack(found: list[tuple[_Problem, Mode]], n: int, dim: int) -> dict[str, Any]:
    """Put the fits of K classes into tensors of K rows, and their cross-fitted values where the examples stood."""
    fits = [fit for _, (fit, _) in found]
    out_of_fold = np.full(n, np.nan, dtype=np.float32)
    for problem, (fit, _) in found:
        out_of_fold[problem.rows] = fit.out_of_fold
    return {
        "classes": torch.tensor([problem.label for problem, _ in found], dtype=torch.int64),
        "weight": torch.from_numpy(np.array([fit.weight for fit in fits], dtype=np.float32).reshape(-1, dim)),
        "bias": torch.tensor([fit.bias for fit in fits], dtype=torch.float32),
        "cv_score": torch.tensor([fit.score for fit in fits], dtype=torch.float64),
        "cv_score_stderr": torch.tensor([fit.stderr for fit in fits], dtype=torch.float64),
        "c": torch.tensor([fit.c for fit in fits], dtype=torch.float64),
        "p_value": torch.tensor([p for _, (_, p) in found], dtype=torch.float64),
        "out_of_fold": torch.from_numpy(out_of_fold),
    }


def _by_class(labels: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield each label, ascending, with its rows."""
    order = np.argsort(labels, kind="stable")
    names, starts = np.unique(labels[order], return_index=True)
    for label, start, stop in zip(names.tolist(), starts, [*starts[1:], len(order)], strict=False):
        yield label, order[start:stop]


def _unshuffled_folds(correct: NDArray[np.bool_], folds: int) -> NDArray[np.int64]:
    """The folds of ``cv=folds`` in scikit-learn."""
    fold = np.zeros(len(correct), dtype=np.int64)
    if min(correct.sum(), (~correct).sum()) >= folds:
        for k, (_, held) in enumerate(StratifiedKFold(folds).split(correct, correct)):
            fold[held] = k
    return fold


def _why_skipped(correct: NDArray[np.bool_], fold: NDArray[np.int64], folds: int) -> str | None:
    for mask, one, many in ((~correct, "failure", "failures"), (correct, "success", "successes")):
        count = int(mask.sum())
        if count < MIN_PER_OUTCOME:
            return f"{count} {one if count == 1 else many}; at least {MIN_PER_OUTCOME} are needed"
        if len(np.unique(fold[mask])) < folds:
            return f"its {many} come from too few sources for {folds} folds"
    return None


def _check_options(
    selection: str, folds: int, n_directions: int, permutations: int, seed: int, cs: Sequence[float] | None
) -> None:
    if selection not in ("scaled", "published"):
        raise ConfigurationError(
            f"fit_failure_directions: selection must be 'scaled' or 'published', got {selection!r}"
        )
    for name, value, least in (
        ("folds", folds, 2),
        ("n_directions", n_directions, 1),
        ("permutations", permutations, 0),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigurationError(f"fit_failure_directions: {name} must be at least {least}, got {value}")
    if cs is not None and (len(cs) == 0 or min(cs) <= 0):
        raise ConfigurationError(f"fit_failure_directions: cs must hold positive numbers, got {cs!r}")
