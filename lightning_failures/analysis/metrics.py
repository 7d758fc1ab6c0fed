"""The definitions as ``torchmetrics`` metrics, and the one that collects grades.

All of them keep rows on the CPU in list states, whatever the module around them does with devices and dtypes. Each
state starts with an empty tensor of its own dtype: a process that saw no batch then still sends what the others expect.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.stats.intervals import wilson_interval
from lightning_failures.trees.error_rates import average_leaf_error_rate


class _Rows(Metric):
    """A metric over rows, one list state a column.

    Args:
        columns: Name and dtype of each state.
        kwargs: Of :class:`torchmetrics.Metric`; ``process_group`` is the one to gather in.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, columns: Mapping[str, torch.dtype], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._columns = dict(columns)
        for name in self._columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self._seed()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._seed()

    def set_dtype(self, dst_type: str | torch.dtype) -> _Rows:
        """Do nothing: ids must not become floats."""
        return self

    def _seed(self) -> None:
        for name, dtype in self._columns.items():
            setattr(self, name, [torch.empty(0, dtype=dtype, device="cpu")])

    def _append(self, *values: Tensor) -> None:
        if any(value.ndim != 1 or len(value) != len(values[0]) for value in values):
            shapes = {name: tuple(value.shape) for name, value in zip(self._columns, values, strict=True)}
            raise DataError(f"{type(self).__name__}.update: all arguments must have the same shape (B,), got {shapes}")
        for (name, dtype), value in zip(self._columns.items(), values, strict=True):
            getattr(self, name).append(value.detach().to("cpu", dtype))

    def _rows(self) -> tuple[Tensor, ...]:
        return tuple(dim_zero_cat(getattr(self, name)) for name in self._columns)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> _Rows:
        return self  # .to(device), .half() and the like: rows stay where and what they are

    def __deepcopy__(self, memo: dict[int, Any]) -> _Rows:
        memo[id(self.process_group)] = self.process_group  # a handle to the outside: shared, not copied
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__setstate__(deepcopy(self.__getstate__(), memo))
        return copy


class GradesMetric(_Rows):
    """Collects what each example was graded, and returns every example once.

    Distributed samplers repeat examples to fill the last batch, and validations may overlap; the first row of an id
    counts. ``update`` takes one batch:

    - ``ids`` (B,) int: the example's index in the dataset.
    - ``labels`` (B,) int: the true class.
    - ``predictions`` (B,) int: the predicted class.
    - ``confidence`` (B,) float in [0, 1]: the predicted probability of the true class.

    ``compute`` returns them in this order, each (N,), int64 and confidence float32, on the CPU, sorted by id. It is a
    collective where processes are many.

    >>> metric = GradesMetric()
    >>> metric.update(torch.tensor([7, 2]), torch.tensor([0, 1]), torch.tensor([0, 0]), torch.tensor([0.9, 0.2]))
    >>> metric.update(torch.tensor([2]), torch.tensor([1]), torch.tensor([0]), torch.tensor([0.2]))
    >>> ids, labels, predictions, confidence = metric.compute()
    >>> ids, predictions
    (tensor([2, 7]), tensor([0, 0]))
    """

    ids: list[Tensor]
    labels: list[Tensor]
    predictions: list[Tensor]
    confidence: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        integers = dict.fromkeys(("ids", "labels", "predictions"), torch.int64)
        super().__init__({**integers, "confidence": torch.float32}, **kwargs)

    def update(self, ids: Tensor, labels: Tensor, predictions: Tensor, confidence: Tensor) -> None:
        """Add one batch."""
        self._append(ids, labels, predictions, confidence)

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ids, labels, predictions and confidence."""
        ids, labels, predictions, confidence = self._rows()
        order = torch.argsort(ids, stable=True)
        ordered = ids[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        first[1:] = ordered[1:] != ordered[:-1]
        rows = order[first]
        return ids[rows], labels[rows], predictions[rows], confidence[rows]

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        @functools.wraps(compute)
        def with_one_dimension(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:  # torchmetrics squeezes a single row
            return tuple(column.reshape(-1) for column in wrapped(*args, **kwargs))

        return with_one_dimension


class AverageLeafErrorRate(_Rows):
    """ALER of a partition: the sum over leaves of error rate times error coverage.

    ``update`` takes ``leaf_ids`` (B,) int and ``failed`` (B,) bool. ``compute`` returns a scalar in [0, 1], NaN if
    nothing failed.

    Args:
        minus_base: Subtract the base error rate: the score of a tree.
        kwargs: Of :class:`torchmetrics.Metric`.

    >>> metric = AverageLeafErrorRate()
    >>> metric(torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, False, False]))
    tensor(1.)
    """

    higher_is_better = False
    leaf_ids: list[Tensor]
    failed: list[Tensor]

    def __init__(self, *, minus_base: bool = False, **kwargs: Any) -> None:
        super().__init__({"leaf_ids": torch.int64, "failed": torch.bool}, **kwargs)
        self.minus_base = minus_base

    def update(self, leaf_ids: Tensor, failed: Tensor) -> None:
        """Add one batch."""
        self._append(leaf_ids, failed)

    def compute(self) -> Tensor:
        """Return the scalar."""
        leaf_ids, failed = self._rows()
        base = failed.double().mean().item() if self.minus_base and len(failed) else 0.0
        return torch.tensor(average_leaf_error_rate(leaf_ids, failed) - base)


class WorstSliceErrorRate(_Rows):
    """Error rate of the worst slice, the one whose 95 % Wilson interval has the largest lower bound.

    Small slices with high rates by chance do not win. Slices should come from other data than these rows.
    ``update`` takes ``slice_ids`` (B,) int, negative for "in no slice", and ``failed`` (B,) bool. ``compute`` returns a
    scalar in [0, 1], NaN without rows.

    >>> metric = WorstSliceErrorRate()
    >>> metric(torch.tensor([0, 1, 1, 1, 1]), torch.tensor([True, True, True, True, False]))
    tensor(0.7500)
    """

    higher_is_better = False
    slice_ids: list[Tensor]
    failed: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({"slice_ids": torch.int64, "failed": torch.bool}, **kwargs)

    def update(self, slice_ids: Tensor, failed: Tensor) -> None:
        """Add one batch."""
        self._append(slice_ids, failed)

    def compute(self) -> Tensor:
        """Return the scalar."""
        slice_ids, failed = self._rows()
        counts = [
            (int(failed[members].sum()), int(members.sum()))
            for members in (slice_ids == s for s in torch.unique(slice_ids[slice_ids >= 0]))
        ]
        if not counts:
            return torch.tensor(math.nan)
        failures, size = max(counts, key=lambda count: wilson_interval(*count)[0])
        return torch.tensor(failures / size)


class ValidLeafFraction(_Rows):
    """Share of groups whose leaf of highest importance is valid (Barlow's Table 1).

    ``update`` takes ``group_ids`` (B,) int, ``leaf_ids`` (B,) int, numbered within their group, and ``failed`` (B,)
    bool. ``compute`` returns a scalar in [0, 1] over the groups with a failure; NaN if there is none.

    Args:
        delta: A valid leaf has an error rate above the group's base error rate + delta ...
        tau: ... and holds more than the share tau of the group's failures.
        kwargs: Of :class:`torchmetrics.Metric`.

    >>> metric = ValidLeafFraction()
    >>> metric(torch.zeros(4), torch.tensor([0, 0, 1, 1]), torch.tensor([True, True, False, False]))
    tensor(1.)
    """

    higher_is_better = False
    group_ids: list[Tensor]
    leaf_ids: list[Tensor]
    failed: list[Tensor]

    def __init__(self, *, delta: float = 0.1, tau: float = 0.2, **kwargs: Any) -> None:
        super().__init__({"group_ids": torch.int64, "leaf_ids": torch.int64, "failed": torch.bool}, **kwargs)
        for name, value in (("delta", delta), ("tau", tau)):
            if not 0 <= value < 1:
                raise ConfigurationError(f"ValidLeafFraction: {name} must lie in [0, 1), got {value}")
        self.delta, self.tau = delta, tau

    def update(self, group_ids: Tensor, leaf_ids: Tensor, failed: Tensor) -> None:
        """Add one batch."""
        self._append(group_ids, leaf_ids, failed)

    def compute(self) -> Tensor:
        """Return the scalar."""
        group_ids, leaf_ids, failed = self._rows()
        valid = [
            self._is_valid(leaf_ids[group_ids == group], failed[group_ids == group])
            for group in torch.unique(group_ids[failed])
        ]
        return torch.tensor(sum(valid) / len(valid) if valid else math.nan)

    def _is_valid(self, leaf_ids: Tensor, failed: Tensor) -> bool:
        _, member = torch.unique(leaf_ids, return_inverse=True)
        failures = torch.bincount(member, weights=failed.double())
        rate, coverage = failures / torch.bincount(member), failures / failures.sum()
        top = int((rate * coverage).argmax())
        return bool(rate[top] > failed.double().mean() + self.delta and coverage[top] > self.tau)


class FlaggedFraction(_Rows):
    """Share of examples that the directions flag: decision value < 0, of those that are not NaN.

    ``update`` takes ``decision_values`` (B,) float. ``compute`` returns a scalar in [0, 1], NaN if no example has a
    value.

    >>> metric = FlaggedFraction()
    >>> metric(torch.tensor([-1.0, 2.0, float("nan")]))
    tensor(0.5000)
    """

    higher_is_better = False
    decision_values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__({"decision_values": torch.float32}, **kwargs)

    def update(self, decision_values: Tensor) -> None:
        """Add one batch."""
        self._append(decision_values)

    def compute(self) -> Tensor:
        """Return the scalar."""
        (values,) = self._rows()
        return (values[~torch.isnan(values)] < 0).float().mean()
