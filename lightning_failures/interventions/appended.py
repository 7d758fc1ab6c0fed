"""The one dataset that carries out additions: the user's training set, and further sources of examples behind it.

What is drawn is decided in the main process, so workers that live through all epochs need no news: an index says from
which source it comes, from which row of it, and what weight the example bears.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lightning_failures.errors import ConfigurationError, DataError

_ROWS = 1 << 40
"""Rows that a source may have; index ``k * _ROWS + row`` is of source k, and the training set is source 0."""


class WeightedIndex(int):
    """A dataset index that tells the weight of its example's loss; for all else a plain integer."""

    weight: float

    def __new__(cls, index: int, weight: float) -> WeightedIndex:
        """Both travel to the workers together."""
        made = super().__new__(cls, index)
        made.weight = weight
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightedIndex, (int(self), self.weight)


def added_index(source: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices in the appended dataset of ``rows`` of the source with the number ``source`` >= 1.

    >>> AppendedDataset(["a", "b"], {2: ["x", "y", "z"]})[int(added_index(2, np.array([1]))[0])]
    'y'
    """
    return source * _ROWS + rows.astype(np.int64)


class AppendedDataset(Dataset[Any]):
    """The training set, as long as it is and with all its attributes, that also answers to indices of other sources.

    Args:
        base: The user's training set.
        sources: Number from 1 -> examples in the same form as those of the training set.
        weight_key: Add the weight of each example's loss, a float32 scalar, 1 unless the index says otherwise: under
            this key where examples are mappings, else as the last element of the tuple. None: leave examples as they
            are.

    >>> data = AppendedDataset([("a", 0)], {}, weight_key="weight")
    >>> data[0], data[WeightedIndex(0, 2.0)]
    (('a', 0, tensor(1.)), ('a', 0, tensor(2.)))
    """

    def __init__(self, base: Any, sources: Mapping[int, Any], *, weight_key: str | None = None) -> None:
        self.base = base
        self.sources = dict(sources)
        self.weight_key = weight_key

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, list | tuple):
            if any(isinstance(one, WeightedIndex) or one >= _ROWS for one in index):
                raise DataError("a training set that is read by lists of indices cannot be joined with other examples")
            return self.base[index]
        source, row = divmod(int(index), _ROWS) if index >= _ROWS else (0, int(index))
        return self._weighed(self.base[row] if source == 0 else self.sources[source][row], index)

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """A batch; read at once where the training set can, and all is from there."""
        many = getattr(self.base, "__getitems__", None)
        if many is None or any(index >= _ROWS for index in indices):
            return [self[index] for index in indices]
        items = many([int(index) for index in indices])
        return [self._weighed(item, index) for item, index in zip(items, indices, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name in ("base", "sources"):  # not yet set while unpickling
            raise AttributeError(name)
        return getattr(self.base, name)

    def _weighed(self, item: Any, index: Any) -> Any:
        if self.weight_key is None:
            return item
        weight = torch.tensor(getattr(index, "weight", 1.0), dtype=torch.float32)
        if isinstance(item, Mapping):
            return {**item, self.weight_key: weight}
        if isinstance(item, tuple | list):
            return (*item, weight)
        raise ConfigurationError(
            f"The weight key {self.weight_key!r} needs examples that are mappings or tuples, got {type(item).__name__}."
        )
