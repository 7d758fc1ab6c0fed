"""The input of an analysis: the contents of a validation batch, and the grade of every example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_mask, as_vector
from lightning_failures.core.types import IntArray
from lightning_failures.data.class_names import unique_class_names
from lightning_failures.errors import DataError

_ROUNDING = 0.01
"""Half precision may round a probability above 1 by less than this."""

_NO_VERDICT = "Grades need predictions, or verdicts (N,) bool: whether the model is right."


@dataclass(frozen=True)
class BatchRecord:
    """The contents of one validation batch; the callback looks for a field that is None by its next rule.

    For tasks other than classification, ``correct`` or ``score`` is the verdict on each example; no logits are sought.
    Labels then divide the examples into classes; without integer labels (B,), all examples are one group, "all".

    Attributes:
        logits: (B, K) float for multiclass and multilabel, (B,) or (B, 1) for binary.
        labels: (B,) int; multilabel (B, K) of 0 and 1.
        images: (B, C, H, W) float or uint8, the input of the model (normalised or not).
        ids: (B,) int, or B texts such as file names, unique for each example of the loader and the same in every epoch.
        correct: (B,) bool, whether the model is right.
        score: (B,) float, how good the output is: the higher the better. Examples below ``failed_below`` of the
            callback are failures; those of NaN are skipped.
    """

    logits: Tensor | None = None
    labels: Tensor | None = None
    images: Tensor | None = None
    ids: Tensor | Sequence[str] | None = None
    correct: Tensor | None = None
    score: Tensor | None = None

    @property
    def has_verdict(self) -> bool:
        """Whether the record says which examples the model is right on, or how good its outputs are."""
        return self.correct is not None or self.score is not None


@dataclass(frozen=True)
class Grades:
    """The label of every example and whether the model is right on it, sorted by id.

    There is one row per example; in a multilabel task, one row per example and condition. Tasks without a predicted
    class have ``verdicts`` instead of ``predictions``. :func:`~lightning_failures.analyse` accepts NumPy arrays, lists,
    booleans and whole floats in all columns.

    Attributes:
        ids: (N,) int64, ascending; the index of the example in the dataset.
        labels: (N,) int64, the true class, an index into ``class_names``.
        predictions: (N,) int64, the predicted class, an index into ``class_names``; None if it is not known.
        confidence: (N,) float32 in [0, 1], the predicted probability of the true class; None if it is not known.
        class_names: K names. A multilabel task has two per condition: absent and present, in this order.
        groups: (N,) int64, the id of each example's source (a patient, a video); None if all sources differ.
        coverage: Share of the loader's examples that were graded, in [0, 1].
        verdicts: (N,) bool, whether the model is right; None: it is right where the prediction equals the label.
        digests: (N,) int64, digests of the images (:mod:`lightning_failures.data.digests`), by which an example is
            found again in another look at the data, whatever its id; None if they are unknown.
        margin: (N,) float32 in [-1, 1], the predicted probability of the true class minus the largest of the others;
            None if it is not known.
    """

    ids: Tensor
    labels: Tensor
    predictions: Tensor | None
    confidence: Tensor | None
    class_names: tuple[str, ...]
    groups: Tensor | None = None
    coverage: float = 1.0
    verdicts: Tensor | None = None
    digests: Tensor | None = None
    margin: Tensor | None = None

    @property
    def correct(self) -> Tensor:
        """(N,) bool: the model is right, by the verdict or because the prediction equals the label."""
        if self.verdicts is not None:
            return self.verdicts
        if self.predictions is None:
            raise DataError(_NO_VERDICT)
        return self.predictions == self.labels

    @property
    def failed(self) -> Tensor:
        """(N,) bool: the model is wrong."""
        return ~self.correct

    def __len__(self) -> int:
        return len(self.ids)


def checked_grades(grades: Grades) -> Grades:
    """Return grades as tensors of the documented types, each label and prediction with a class name.

    Raises:
        DataError: A column has another length or kind, or a label or prediction has no class name.

    >>> checked_grades(Grades([4, 7], [0.0, 1.0], np.array([True, True]), [0.2, 0.9], ["cat", "dog"])).labels
    tensor([0, 1])
    """
    names = unique_class_names(grades.class_names)
    if not names:
        raise DataError(f"Grades.class_names must be a list of names, one for each class; got {grades.class_names!r}.")
    ids = as_array(grades.ids)
    if ids.ndim != 1:
        raise DataError(f"Grades.ids must have shape (N,); got {ids.shape}.")
    size = len(ids)
    verdicts = None if grades.verdicts is None else as_mask(grades.verdicts, "Grades.verdicts", size)
    checked = replace(
        grades,
        ids=torch.from_numpy(_integers(ids, "ids", size)),
        labels=_classes(grades.labels, "labels", size, names),
        predictions=None if grades.predictions is None else _classes(grades.predictions, "predictions", size, names),
        confidence=None if grades.confidence is None else _probabilities(grades.confidence, size),
        class_names=tuple(names),
        groups=None if grades.groups is None else _sources(grades.groups, size),
        verdicts=None if verdicts is None else torch.from_numpy(verdicts),
    )
    if checked.predictions is None and checked.verdicts is None:
        raise DataError(_NO_VERDICT)
    return checked


def _integers(values: Any, name: str, size: int) -> IntArray:
    array = as_vector(values, f"Grades.{name}", size)
    if array.dtype.kind != "i":
        raise DataError(f"Grades.{name} must hold integers; got dtype {array.dtype}.")
    return array


def _classes(values: Any, name: str, size: int, names: list[str]) -> Tensor:
    classes = _integers(values, name, size)
    outside = np.flatnonzero((classes < 0) | (classes >= len(names)))
    if len(outside):
        remedy = "Leave out examples without a label." if name == "labels" else "Give a name for every class."
        raise DataError(
            f"Grades.{name} must be indices into the {len(names)} class names, 0 ... {len(names) - 1}, but"
            f" {len(outside)} of {size} are not: row {outside[0]} has {classes[outside[0]]}. {remedy}"
        )
    return torch.from_numpy(classes)


def _probabilities(values: Any, size: int) -> Tensor:
    array = as_array(values)
    if array.shape != (size,) or array.dtype.kind not in "fiub":
        raise DataError(f"Grades.confidence must be ({size},) numbers; got {array.dtype} of shape {array.shape}.")
    outside = np.flatnonzero(~((array >= -_ROUNDING) & (array <= 1 + _ROUNDING)))  # true for NaN as well
    if len(outside):
        raise DataError(
            f"Grades.confidence must be probabilities of the true class, in [0, 1]; row {outside[0]} has"
            f" {array[outside[0]]}. Give None if they are not known."
        )
    return torch.from_numpy(array.astype(np.float32))


def _sources(values: Any, size: int) -> Tensor:
    """Return the source of each row (N,) int64; names are numbered."""
    array = as_vector(values, "Grades.groups", size)
    return torch.from_numpy(array if array.dtype.kind == "i" else np.unique(array, return_inverse=True)[1]).long()
