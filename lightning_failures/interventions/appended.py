"""The training set with additional sources of examples behind it.

The main process decides what is drawn. Persistent workers need no update, because an index carries everything: the
source, the row of the source, and the loss weight of the example.
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
"""Maximum number of rows of a source: index ``k * _ROWS + row`` belongs to source k, the training set is source 0."""


class WeightedIndex(int):
    """A dataset index with the loss weight of its example; otherwise a plain integer."""

    weight: float

    def __new__(cls, index: int, weight: float) -> WeightedIndex:
        """Make an index with a weight."""
        made = super().__new__(cls, index)
        made.weight = weight
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return WeightedIndex, (int(self), self.weight)


def added_index(source: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices in the appended dataset of rows (E,) of a source, numbered from 1.

    >>> AppendedDataset(["a", "b"], {2: ["x", "y", "z"]})[int(added_index(2, np.array([1]))[0])]
    'y'
    """
    return source * _ROWS + rows.astype(np.int64)


class AppendedDataset(Dataset[Any]):
    """The training set, with its length and all its attributes, which also accepts indices of other sources.

    Args:
        base: The user's training set.
        sources: Number from 1 -> examples in the same form as those of the training set.
        weight_key: Key of the loss weight added to each example, a float32 scalar, 1 unless the index carries another.
            Mappings get it under this key, tuples as their last element. None leaves examples unchanged.

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
                raise DataError("A training set that is read by lists of indices cannot be joined with other examples.")
            return self.base[index]
        source, row = divmod(int(index), _ROWS) if index >= _ROWS else (0, int(index))
        return self._weighed(self.base[row] if source == 0 else self.sources[source][row], index)

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """Return a batch, read in one call if it is all from a training set that supports this."""
        read_many = getattr(self.base, "__getitems__", None)
        if read_many is None or any(index >= _ROWS for index in indices):
            return [self[index] for index in indices]
        items = read_many([int(index) for index in indices])
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
            f"weight_key={self.weight_key!r} needs examples that are mappings or tuples, got {type(item).__name__}."
        )
