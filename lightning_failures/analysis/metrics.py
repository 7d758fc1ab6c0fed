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


class GradesMetric(Metric):
    """Collect the grade of each example, and return every example once.

    Distributed samplers repeat examples to fill the last batch, and validations may overlap; only the first row of each
    id is kept. ``update`` takes one batch:

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
        kwargs: Arguments of :class:`torchmetrics.Metric`; ``process_group`` is the group to gather in.

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

    def __init__(self, *, with_digests: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns = _COLUMNS | ({"digests": torch.int64} if with_digests else {})
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
    ) -> None:
        """Add one batch.

        Raises:
            DataError: The arguments are not vectors of the same length.
        """
        batch = {"ids": ids, "labels": labels, "predictions": predictions, "confidence": confidence}
        if "digests" in self._columns:
            batch["digests"] = torch.full_like(ids, UNKNOWN_DIGEST) if digests is None else digests
        if any(value.ndim != 1 or len(value) != len(ids) for value in batch.values()):
            shapes = {name: tuple(value.shape) for name, value in batch.items()}
            raise DataError(f"GradesMetric.update: all arguments must have the same shape (B,), got {shapes}")
        for name, value in batch.items():
            getattr(self, name).append(value.detach().to("cpu", self._columns[name]))

    def compute(self) -> tuple[Tensor, ...]:
        """Return ids, labels, predictions and confidence, and digests if they are collected."""
        columns = [dim_zero_cat(getattr(self, name)) for name in self._columns]
        ids = columns[0]
        order = torch.argsort(ids, stable=True)
        ordered = ids[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        rows = order[first]
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
