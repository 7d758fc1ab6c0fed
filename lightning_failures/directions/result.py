"""The fitted failure directions: decision values, the file format, and joining the classes of several processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_mask, as_rows, as_vector, finite_rows_of
from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.types import IntArray
from lightning_failures.directions.standardize import standardize
from lightning_failures.directions.svm import FIXABLE_MULTIPLE
from lightning_failures.errors import DataError

DIRECTIONS_FILE = "directions.safetensors"
"""Name of the file in a run folder with the directions of the last report."""

NO_ADDITIONAL_PATTERN = "no further pattern"
"""Why a class has no direction of a rank above 0 although it has one of every rank below."""

EFFECTS = ("effect", "effect_interval", "margin_auc", "whole_auc", "flag_agreement")
"""Tensors with a row for each class that files of former versions lack."""

_FORMAT = "lightning_failures.directions/1"
_NO_FLOATS = ("classes", "in_doubt", "doubted")
_PER_CLASS = ("classes", "weight", "bias", "cv_score", "cv_score_stderr", "c", "p_value", *EFFECTS)

MIN_AUC = 0.55
"""AUC of the decision values from which the share that doubtful labels explain is defined."""

EXPLAINED = 0.7
"""Most failures look like doubtful labels if label margins explain more than this of what decision values know."""

MIN_IN_DOUBT = 1 / 3
"""Share of the failures whose label must be in doubt to say so."""


@dataclass(frozen=True, eq=False)
class FailureDirections:
    """One linear SVM per class: a negative decision value predicts a failure (hard), a positive one a success (easy).

    Attributes:
        classes: (K,) int64, the classes that have an SVM, ascending. Row k of every attribute of length K belongs to
            ``classes[k]``.
        weight: (K, D) float32, w.
        bias: (K,) float32, b.
        cv_score: (K,) float64 in [0, 1], mean balanced accuracy over the folds, of the examples whose labels are not in
            doubt. It is optimistic if C was selected on the same folds (``cs``, ``selection="published"``).
        cv_score_stderr: (K,) float64, binomial standard error of the CV score.
        c: (K,) float64, C.
        p_value: (K,) float64 in (0, 1] of the screening test; its null hypothesis is that correctness is independent of
            the embedding. NaN without permutations.
        mean: (D,) float32 that phi subtracts.
        std: (D,) float32 that phi divides by; 0 for a degenerate dimension, which contributes 0.
        out_of_fold: (N,) float32 in the order of the caller's rows: the cross-fitted decision value, from the fit that
            did not see the example. NaN in skipped classes.
        effect: (K,) float64 in [-1, 1], the error rate of the flagged examples minus that of the unflagged, by
            ``out_of_fold``; NaN if all or none are flagged.
        effect_interval: (K, 2) float64, its 95 % interval, which keeps sources whole.
        label_margin: (N,) float32, how far the score of the label lies above that of the best other class, by the
            cross-fitted probe; negative where the label is in doubt. NaN without a probe.
        in_doubt: (N,) bool, the examples, failures and successes, whose label the probe does not support, in classes
            that it knows.
        doubted: (N,) bool, those of them that left the fit. False in skipped classes.
        margin_auc: (K,) float64 in [0, 1], AUC of the label margin for telling successes from failures.
        whole_auc: (K,) float64 in [0, 1], the same of the out-of-fold decision values of a fit that doubts no label.
        flag_agreement: (K,) float64 in [0, 1], share of the flagged examples that are flagged again if the folds are
            drawn differently: the positive agreement of two divisions. NaN for additional directions, and where the
            screening test finds no pattern (p > 0.05).
        skipped: Class without an SVM -> the reason.
        whiten: False if phi only scales to unit length.
        multiple: C in units of the critical C, the same for all classes.
        further: Additional directions (``n_directions > 1``), one result per rank with the classes that have a
            direction of this rank. Their CV scores separate the failures at one end from the successes. Since the data
            selected this end, they are more optimistic than the score of the first direction.
        centres: (L, D) float32, mean of phi over the examples of each label 0 ... L - 1, NaN for a label without
            examples; None outside of an analysis, for additional directions, and in files of former versions.
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
    effect: Tensor
    effect_interval: Tensor
    label_margin: Tensor
    in_doubt: Tensor
    doubted: Tensor
    margin_auc: Tensor
    whole_auc: Tensor
    flag_agreement: Tensor
    skipped: dict[int, str] = field(default_factory=dict)
    whiten: bool = True
    multiple: float = FIXABLE_MULTIPLE
    further: tuple[FailureDirections, ...] = ()
    centres: Tensor | None = None

    @property
    def explained(self) -> Tensor:
        """(K,) float64: how much of what decision values know of the failures of a class, label margins know too.

        It is (margin AUC - 1/2) / (whole AUC - 1/2). Near 1, the failures look like doubtful labels. NaN where the
        decision values hardly tell failures, or without a probe. Values of single classes vary: read
        :attr:`explained_overall` first.
        """
        return torch.where(self.whole_auc >= MIN_AUC, (self.margin_auc - 0.5) / (self.whole_auc - 0.5), torch.nan)

    @property
    def explained_overall(self) -> float | None:
        """The ratio of the means over classes, see :attr:`explained`; None where it is undefined."""
        known = ~(self.margin_auc.isnan() | self.whole_auc.isnan())
        if not known.any():
            return None
        whole = float(self.whole_auc[known].mean())
        return (float(self.margin_auc[known].mean()) - 0.5) / (whole - 0.5) if whole >= MIN_AUC else None

    def failures_look_doubtful(self, failed: Any) -> bool:
        """Return whether most failures look like doubtful labels, so that a pattern of them may be one of wrong labels.

        Label margins must explain more than 0.7 of what decision values know of the failures, and a third of the
        failures must be in doubt; where decision values know nothing, or no class has a direction, half of them.

        Args:
            failed: (N,) bool, whether the model was wrong on the examples of the fit.
        """
        mask = as_mask(failed, "failed", len(self.in_doubt))
        explained, failures = self.explained_overall, int(mask.sum())
        in_doubt = int((as_array(self.in_doubt) & mask).sum())
        if explained is None:
            return failures > 0 and in_doubt >= failures / 2
        return failures > 0 and explained > EXPLAINED and in_doubt >= MIN_IN_DOUBT * failures

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

        For the examples that the SVMs were fitted on, use :attr:`out_of_fold`: values computed here are in-sample.

        Args:
            embeddings: (N, D) float tensor or array.
            labels: (N,) int.

        Returns:
            (N,) float32, NaN where the class has no SVM or the embedding is not finite.
        """
        x = as_rows(embeddings, "embeddings", finite=False)
        y = as_vector(labels, "labels", len(x))
        if x.shape[1] != self.weight.shape[1]:
            raise DataError(f"embeddings must have {self.weight.shape[1]} dimensions, got {x.shape[1]}")
        mean, std, weight, bias = (t.double().numpy() for t in (self.mean, self.std, self.weight, self.bias))
        values = np.full(len(x), np.nan, dtype=np.float32)
        finite = finite_rows_of(x)
        row_of = dict(zip(self.classes.tolist(), range(len(self.classes)), strict=True))
        for label, rows in rows_by_class(y):
            if (k := row_of.get(label)) is not None:
                known = rows[finite[rows]]
                values[known] = standardize(x[known], mean, std) @ weight[k] + bias[k]
        return torch.from_numpy(values)

    def flag(self, embeddings: Any, labels: Any) -> Tensor:
        """Return (N,) bool: decision value < 0. False where the class has no SVM."""
        return self.decision_values(embeddings, labels) < 0

    def nearest_class(self, embeddings: Any) -> Tensor:
        """Return the class whose centre is nearest to phi of each embedding, a guess where labels are not known.

        Args:
            embeddings: (N, D) float tensor or array.

        Returns:
            (N,) int64, -1 for an embedding that is not finite.

        Raises:
            DataError: The directions have no centres, or other dimensions.
        """
        if self.centres is None:
            raise DataError(
                "these directions have no class centres, which files of former versions lack. Analyse the model with"
                " this version."
            )
        x = as_rows(embeddings, "embeddings", finite=False)
        if x.shape[1] != self.centres.shape[1]:
            raise DataError(f"embeddings must have {self.centres.shape[1]} dimensions, got {x.shape[1]}")
        finite = finite_rows_of(x)
        mean, std, centres = (t.double().numpy() for t in (self.mean, self.std, self.centres))
        # |phi - centre|^2 without |phi|^2, which is the same for all classes
        scores = 2 * standardize(x[finite], mean, std) @ centres.T - (centres**2).sum(axis=1)
        nearest = np.full(len(x), -1, dtype=np.int64)
        nearest[finite] = np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)
        return torch.from_numpy(nearest)

    def save(self, path: str | Path) -> None:
        """Write the directions to one safetensors file, atomically."""
        tensors: dict[str, Tensor] = {}
        ranks = (self, *self.further)
        for rank, directions in enumerate(ranks):
            for name in _TENSORS:
                # safetensors refuses tensors that share memory, as mean and std of all ranks do
                tensors[f"{rank}.{name}"] = getattr(directions, name).contiguous().clone()
        if self.centres is not None:
            tensors["centres"] = self.centres.half().contiguous()
        metadata = {
            "format": _FORMAT,
            "whiten": json.dumps(self.whiten),
            "multiple": json.dumps(self.multiple),
            "skipped": json.dumps([directions.skipped for directions in ranks]),
        }
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> FailureDirections:
        """Read directions that :meth:`save` wrote.

        Raises:
            DataError: The file has another format or is damaged.
        """
        try:
            return cls._load(path)
        except (OSError, DataError):
            raise
        except Exception as error:  # a damaged file can raise anything
            raise DataError(f"{path} holds no failure directions ({str(error)[:200]})") from error

    @classmethod
    def _load(cls, path: str | Path) -> FailureDirections:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise DataError(f"{path} holds no failure directions (format {metadata.get('format')!r})")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        centres = tensors.pop("centres", None)
        skipped = [{int(k): str(v) for k, v in reasons.items()} for reasons in json.loads(metadata["skipped"])]
        for rank in range(len(skipped)):  # files of former versions have neither effects nor doubts
            unknown = without_effects(len(tensors[f"{rank}.bias"]), tensors[f"{rank}.out_of_fold"].numel())
            tensors = {f"{rank}.{name}": tensor for name, tensor in unknown.items()} | tensors
        first, *further = (
            cls(
                **{name: tensors[f"{rank}.{name}"] for name in _TENSORS},
                skipped=reasons,
                whiten=bool(json.loads(metadata["whiten"])),
                multiple=float(json.loads(metadata.get("multiple", str(FIXABLE_MULTIPLE)))),
            )._checked()
            for rank, reasons in enumerate(skipped)
        )
        if centres is not None and (centres.ndim != 2 or centres.shape[1] != first.mean.numel()):
            raise DataError(f"{path} holds no failure directions (centres have shape {tuple(centres.shape)})")
        centres = None if centres is None else centres.float()
        return dataclasses.replace(first, further=tuple(further), centres=centres)

    def _checked(self) -> FailureDirections:
        """Return the directions if their shapes and types agree.

        Raises:
            ValueError: A tensor has another shape or type.
        """
        k, d = self.weight.shape
        n = self.out_of_fold.numel()
        shapes = {"mean": (d,), "std": (d,), "weight": (k, d), "effect_interval": (k, 2)}
        shapes |= dict.fromkeys(("out_of_fold", "label_margin", "in_doubt", "doubted"), (n,))
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor.shape != shapes.get(name, (k,)) or tensor.is_floating_point() == (name in _NO_FLOATS):
                raise ValueError(f"{name} has shape {tuple(tensor.shape)} and type {tensor.dtype}")
        return self


_TENSORS = tuple(f.name for f in dataclasses.fields(FailureDirections) if f.type == "Tensor")


def without_effects(classes: int, examples: int) -> dict[str, Tensor]:
    """Return the tensors of effects and doubts of directions for which neither is known."""
    nan = float("nan")
    unknown = {name: torch.full((classes,), nan, dtype=torch.float64) for name in EFFECTS}
    return unknown | {
        "effect_interval": torch.full((classes, 2), nan, dtype=torch.float64),
        "label_margin": torch.full((examples,), nan),
        "in_doubt": torch.zeros(examples, dtype=torch.bool),
        "doubted": torch.zeros(examples, dtype=torch.bool),
    }


def join_directions(parts: Sequence[FailureDirections], rows: Sequence[IntArray], n: int) -> FailureDirections:
    """Join directions that were fitted on disjoint sets of classes with the same mean and standard deviation.

    Args:
        parts: The directions of each set of classes.
        rows: For each part the row of each of its examples among all n.
        n: Total number of examples.

    >>> from lightning_failures.directions import fit_failure_directions
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
        of_rank = [_of_rank(part, rank) for part in parts]
        order = torch.argsort(torch.cat([part.classes for part in of_rank]))
        values: dict[str, Any] = {}
        for name in _PER_CLASS:
            values[name] = torch.cat([getattr(part, name) for part in of_rank])[order]
        unknown = without_effects(0, n)
        of_examples: dict[str, Any] = {"out_of_fold": torch.full((n,), float("nan"))}
        of_examples |= {name: unknown[name] for name in ("label_margin", "in_doubt", "doubted")}
        for part, part_rows in zip(of_rank, rows, strict=True):
            for name, column in of_examples.items():
                column[torch.from_numpy(part_rows)] = getattr(part, name)
        skipped = dict(sorted(item for part in of_rank for item in part.skipped.items()))
        ranks.append(dataclasses.replace(parts[0], **values, **of_examples, skipped=skipped, further=()))
    return dataclasses.replace(ranks[0], further=tuple(ranks[1:]))


def _of_rank(directions: FailureDirections, rank: int) -> FailureDirections:
    """Return the directions of a rank, 0 for the first; without classes where the search ended before this rank."""
    ranks = (directions, *directions.further)
    if rank < len(ranks):
        return ranks[rank]
    ended = ranks[-1].classes.tolist() if rank == len(ranks) else []
    no_classes: dict[str, Any] = {name: getattr(directions, name)[:0] for name in _PER_CLASS}
    no_values = torch.full_like(directions.out_of_fold, float("nan"))
    skipped = dict.fromkeys(ended, NO_ADDITIONAL_PATTERN)
    no_doubts = torch.zeros_like(directions.doubted)
    return dataclasses.replace(
        directions, **no_classes, out_of_fold=no_values, doubted=no_doubts, skipped=skipped, further=()
    )


def rows_by_class(labels: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Yield each label, ascending, with the rows that have it."""
    order = np.argsort(labels, kind="stable")
    names, starts = np.unique(labels[order], return_index=True)
    stops = [*starts[1:], len(order)]
    for label, start, stop in zip(names.tolist(), starts, stops, strict=False):
        yield label, order[start:stop]
