"""The table of examples of one analysis, which reports and comparisons of runs read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_failures.core.atomic import write_atomically
from lightning_failures.data.grades import Grades
from lightning_failures.data.grouping import LABEL, PREDICTION, Grouping
from lightning_failures.data.members import members_of
from lightning_failures.errors import DataError

EXAMPLES_FILE = "examples.safetensors"

ANALYSIS_TABLE_FILE = "table.safetensors"
"""The table of an analysis, in its own folder; the name differs, so that a run has one ``examples.safetensors``."""

MAX_TABLES = 20
"""Most analyses of a run that keep their table: the first one and the latest."""

"""File name of the table of the latest analysis, next to its ``report.json``."""

_FORMAT = "lightning-failures examples 1"


class _Leaf(Protocol):
    @property
    def ids(self) -> Tensor: ...


class _Tree(Protocol):
    @property
    def leaves(self) -> Sequence[_Leaf]: ...


@dataclass(frozen=True)
class ExampleTable:
    """One row per graded example, sorted by id; in a multilabel task, one row per example and condition.

    Attributes:
        ids: (N,) int64, ascending.
        labels: (N,) int64, indices into ``class_names``.
        predictions: (N,) int64, indices into ``class_names``; None if they are not known.
        confidence: (N,) float32 in [0, 1], the predicted probability of the true class; None if it is not known.
        values: (N,) float32 decision values, cross-fitted if the direction was fitted on the example; NaN without a
            direction.
        label_leaf: (N,) int64, the leaf of the example in the tree of its label group; -1 without a tree.
        prediction_leaf: (N,) int64, the leaf of the example in the tree of its prediction group; -1 without a tree.
        class_names: K names.
        verdicts: (N,) bool, whether the model is right; None: it is right where the prediction equals the label.
        digests: (N,) int64, digests of the images, -1 where unknown; None in files of former versions.
        names: (N,) int64, hashes of the file names, below the root of the dataset; None if the dataset has none.
        indexed: Whether the ids are indices of the dataset, rather than given by the user; None if unknown.
        groups: (N,) int64, the source of each example; None if all sources differ, and in files of former versions.
    """

    ids: Tensor
    labels: Tensor
    predictions: Tensor | None
    confidence: Tensor | None
    values: Tensor
    label_leaf: Tensor
    prediction_leaf: Tensor
    class_names: tuple[str, ...]
    verdicts: Tensor | None = None
    digests: Tensor | None = None
    names: Tensor | None = None
    indexed: bool | None = None
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def failed(self) -> Tensor:
        """(N,) bool: the model is wrong, by the verdict or because the prediction differs from the label."""
        if self.verdicts is not None:
            return ~self.verdicts
        if self.predictions is None:
            raise DataError("A table of examples needs predictions, or verdicts.")
        return self.predictions != self.labels

    @property
    def flagged(self) -> Tensor:
        """(N,) bool: the decision value is negative."""
        return self.values < 0

    @classmethod
    def of(cls, grades: Grades, values: Tensor | None, trees: Mapping[tuple[str, str], _Tree]) -> ExampleTable:
        """Build the table of an analysis.

        Args:
            grades: N rows.
            values: (N,) decision values, or None.
            trees: Trees by grouping and class name; a leaf lists the ids of its examples.

        >>> grades = Grades(torch.tensor([3, 5]), torch.tensor([0, 0]), torch.tensor([0, 1]), torch.ones(2), ("a", "b"))
        >>> table = ExampleTable.of(grades, torch.tensor([0.5, -0.5]), {})
        >>> table.failed.tolist(), table.flagged.tolist(), table.label_leaf.tolist()
        ([False, True], [False, True], [-1, -1])
        """
        return cls(
            ids=grades.ids,
            labels=grades.labels,
            predictions=grades.predictions,
            # half precision may round above 1
            confidence=None if grades.confidence is None else grades.confidence.float().clamp(0, 1),
            values=torch.full((len(grades),), float("nan")) if values is None else values.float(),
            label_leaf=_leaves(grades, LABEL, trees),
            prediction_leaf=_leaves(grades, PREDICTION, trees),
            class_names=grades.class_names,
            verdicts=grades.verdicts,
            digests=grades.digests,
            groups=grades.groups,
        )

    def where(self, rows: Tensor) -> ExampleTable:
        """Return the table of some rows, (N,) bool."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in (*_TENSORS, *_OPTIONAL)}
        selected: dict[str, Any] = {name: None if v is None else v[rows] for name, v in columns.items()}
        return dataclasses.replace(self, **selected)

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, atomically."""
        columns = {name: getattr(self, name) for name in (*_TENSORS, *_OPTIONAL)}
        tensors = {
            name: column.clone(memory_format=torch.contiguous_format)
            for name, column in columns.items()
            if column is not None
        }
        metadata = {"format": _FORMAT, "class_names": json.dumps(self.class_names), "indexed": json.dumps(self.indexed)}
        write_atomically(Path(path), save(tensors, metadata))

    @classmethod
    def load(cls, path: str | Path) -> ExampleTable:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: The file is not a table of examples, or is damaged.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != _FORMAT:
                    raise ValueError(f"format {metadata.get('format')!r}")
                stored = set(file.keys())
                tensors: dict[str, Any] = {name: file.get_tensor(name) for name in _TENSORS}
                tensors |= {name: file.get_tensor(name) if name in stored else None for name in _OPTIONAL}
            names = json.loads(metadata["class_names"])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError("class names are not strings")
            indexed = json.loads(metadata.get("indexed", "null"))
            if indexed not in (None, True, False):
                raise ValueError("whether ids are indices is not known")
            return cls(**tensors, class_names=tuple(names), indexed=indexed)._checked()
        except OSError:
            raise
        except Exception as error:  # damaged files raise errors of many types
            raise DataError(f"{path} is not a valid table of examples ({str(error)[:200]})") from error

    def _checked(self) -> ExampleTable:
        """Return the table if its shapes, types and class indices are consistent and its numbers in range."""
        if self.predictions is None and self.verdicts is None:
            raise ValueError("neither predictions nor verdicts")
        for name in (*_TENSORS, *_OPTIONAL):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if tensor.shape != self.ids.shape or tensor.ndim != 1:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}")
            if tensor.dtype != _DTYPES.get(name, torch.int64):
                raise ValueError(f"{name} has type {tensor.dtype}")
        for column in (self.labels, self.predictions):
            if column is None or not len(column):
                continue
            if not 0 <= int(column.min()) <= int(column.max()) < len(self.class_names):
                raise ValueError("a class index has no class name")
        confidence = self.confidence
        if confidence is not None and not bool(((confidence >= 0) & (confidence <= 1)).all()):  # false for NaN as well
            raise ValueError("confidence is not in [0, 1]")
        if bool(self.values.isinf().any()):
            raise ValueError("a decision value is infinite")
        return self


_TENSORS = tuple(f.name for f in dataclasses.fields(ExampleTable) if f.type == "Tensor")
_OPTIONAL = tuple(f.name for f in dataclasses.fields(ExampleTable) if f.type == "Tensor | None")
_DTYPES = {"confidence": torch.float32, "values": torch.float32, "verdicts": torch.bool}


def _leaves(grades: Grades, grouping: Grouping, trees: Mapping[tuple[str, str], _Tree]) -> Tensor:
    """Return (N,) int64, the index of each example's leaf in the tree of its group; -1 without a split tree."""
    leaf_of = np.full(len(grades), -1, dtype=np.int64)
    for members in members_of(grades, grouping):
        tree = trees.get((grouping.name, members.name))
        if tree is None or len(tree.leaves) < 2:
            continue
        for index, leaf in enumerate(tree.leaves):
            leaf_of[members.rows[np.isin(members.ids, leaf.ids.numpy())]] = index
    return torch.from_numpy(leaf_of)
