"""The ``torchmetrics`` metric that collects the grades of an evaluation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_failures.data.digests import UNKNOWN_DIGEST
from lightning_failures.errors import DataError

_COLUMNS = {
    "ids": torch.int64,
    "labels": torch.int64,
    "predictions": torch.int64,
    "confidence": torch.float32,
}

_ROUNDING = 0.05
"""Difference of two confidences of one example, in half precision and in batches of different sizes."""


class GradesMetric(Metric):
    """Collect the grade of each example, and return every example once.

    Distributed samplers repeat examples to fill the last batch, and validations may overlap; only the first row of each
    id is kept. With ``multilabel`` there is a row for each id and condition, whose labels are 2 * condition and the
    next number. ``update`` takes one batch:

    - ``ids`` (B,) int: the example's index in the dataset.
    - ``labels`` (B,) int: the true class.
    - ``predictions`` (B,) int: the predicted class.
    - ``confidence`` (B,) float in [0, 1]: the predicted probability of the true class.

    ``compute`` returns the four columns in this order, each (N,), int64 and confidence float32, on the CPU, sorted by
    id. With several processes it is a collective operation.

    Rows stay on the CPU, in list states of these dtypes, even if the surrounding module is moved or cast.
    Each state starts with an empty tensor of its dtype, so that a process without any batch still sends the tensors
    that the other processes expect.

    Args:
        with_digests: ``update`` takes, and ``compute`` returns, a fifth column: digests of the images, int64
            (:mod:`lightning_failures.data.digests`).
        with_margins: The last column is the probability of the true class minus the largest of the others, float32.
        kwargs: Arguments of :class:`torchmetrics.Metric`; ``process_group`` is the group to gather in.

    Attributes:
        multilabel: Whether an id has a row for each condition.
        contradictions: Number of rows that the last ``compute`` left out although they contradict the row that it kept.

    >>> metric = GradesMetric()
    >>> metric.update(torch.tensor([7, 2]), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0.9, 0.2]))
    >>> metric.update(torch.tensor([2]), torch.tensor([1]), torch.tensor([0]), torch.tensor([0.2]))
    >>> ids, labels, predictions, confidence = metric.compute()
    >>> ids, predictions
    (tensor([2, 7]), tensor([0, 0]))
    """

    is_differentiable = False
    full_state_update = False

    ids: list[Tensor]
    labels: list[Tensor]
    predictions: list[Tensor]
    confidence: list[Tensor]

    def __init__(self, *, with_digests: bool = False, with_margins: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.multilabel = False
        self.contradictions = 0
        self._columns = _COLUMNS | ({"digests": torch.int64} if with_digests else {})
        self._columns |= {"margins": torch.float32} if with_margins else {}
        for name in self._columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._clear()

    def update(
        self,
        ids: Tensor,
        labels: Tensor,
        predictions: Tensor,
        confidence: Tensor,
        digests: Tensor | None = None,
        margins: Tensor | None = None,
    ) -> None:
        """Add one batch.

        Raises:
            DataError: The arguments are not vectors of the same length.
        """
        batch = {"ids": ids, "labels": labels, "predictions": predictions, "confidence": confidence}
        if "digests" in self._columns:
            batch["digests"] = torch.full_like(ids, UNKNOWN_DIGEST) if digests is None else digests
        if "margins" in self._columns:
            batch["margins"] = torch.full_like(confidence, torch.nan) if margins is None else margins
        if any(value.ndim != 1 or len(value) != len(ids) for value in batch.values()):
            shapes = {name: tuple(value.shape) for name, value in batch.items()}
            raise DataError(f"GradesMetric.update: all arguments must have the same shape (B,), got {shapes}")
        for name, value in batch.items():
            getattr(self, name).append(value.detach().to("cpu", self._columns[name]))

    def compute(self) -> tuple[Tensor, ...]:
        """Return ids, labels, predictions and confidence, and digests and margins if they are collected."""
        columns = [dim_zero_cat(getattr(self, name)) for name in self._columns]
        ids, labels, _, confidence = columns[:4]
        rows, self.contradictions = first_rows(ids, labels, confidence, multilabel=self.multilabel)
        return tuple(column[rows] for column in columns)

    def reset(self) -> None:
        """Remove all rows."""
        super().reset()
        self._clear()

    def set_dtype(self, dst_type: str | torch.dtype) -> GradesMetric:
        """Do nothing: ids must not become floats."""
        return self

    def _clear(self) -> None:
        for name, dtype in self._columns.items():
            setattr(self, name, [torch.empty(0, dtype=dtype, device="cpu")])

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> GradesMetric:
        return self  # ignore .to(device), .half() and the like

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def with_one_dimension(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:  # torchmetrics squeezes a single row
            return tuple(column.reshape(-1) for column in wrapped(*args, **kwargs))

        return with_one_dimension

    def __deepcopy__(self, memo: dict[int, Any]) -> GradesMetric:
        memo[id(self.process_group)] = self.process_group  # a process group cannot be copied: share it
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        return copy


def first_rows(ids: Tensor, labels: Tensor, confidence: Tensor, *, multilabel: bool = False) -> tuple[Tensor, int]:
    """Return the first row of each id, and the number of others that contradict it.

    Args:
        ids: (B,) int64.
        labels: (B,) int64.
        confidence: (B,) float32.
        multilabel: Whether an id has a row for each condition, whose labels are 2 * condition and the next number.

    Returns:
        The rows, by id and condition; and the number of other rows that have another label than the first row of their
        id, or a confidence that differs by more than rounding explains.
    """
    order = torch.argsort(ids, stable=True)
    if multilabel:
        by_condition = torch.argsort(labels // 2, stable=True)
        order = by_condition[torch.argsort(ids[by_condition], stable=True)]
    is_first = torch.ones(len(ids), dtype=torch.bool)
    is_first[1:] = ids[order][1:] != ids[order][:-1]
    if multilabel:
        condition = labels[order] // 2
        is_first[1:] |= condition[1:] != condition[:-1]
    first = order[is_first]
    kept = first[is_first.long().cumsum(0) - 1] if len(ids) else order
    contradicts = (labels[order] != labels[kept]) | ((confidence[order] - confidence[kept]).abs() > _ROUNDING)
    return first, int(contradicts.sum())
