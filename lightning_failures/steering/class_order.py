"""Pools whose classes have the names of the training set, but other numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from lightning_failures.core.text import clean
from lightning_failures.data.grading import LABEL_KEYS
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.dataset_attributes import dataset_class_names

_SHOWN = 3


class RenumberedPool(Dataset[Any]):
    """A pool with the labels of the training set.

    Args:
        pool: Examples (image, label, ...), or mappings with one of the keys label, labels, target, y.
        numbers: The label in the training set of each label of the pool.
        classes: Names of the classes of the training set.

    >>> RenumberedPool([("image", 0), ("image", 1)], [1, 0], ["cat", "dog"])[0]
    ('image', 1)
    """

    def __init__(self, pool: Any, numbers: Sequence[int], classes: Sequence[str]) -> None:
        self.pool, self.numbers, self.classes = pool, list(numbers), list(classes)

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: Any) -> Any:
        item = self.pool[index]
        if isinstance(item, Mapping):
            key = next((key for key in LABEL_KEYS if key in item), None)
            if key is not None:
                return {**item, key: self._renumbered(item[key])}
        elif isinstance(item, tuple | list) and len(item) >= 2:
            values = [item[0], self._renumbered(item[1]), *item[2:]]
            make = getattr(type(item), "_make", type(item))  # a named tuple has its own way
            return make(values)
        raise ConfigurationError(
            f"The pool numbers its classes in another order than the training set, and the label of its examples, of"
            f" type {type(item).__name__}, is not known. Give a pool with the order of the training set."
        )

    def _renumbered(self, label: Any) -> Any:
        """Return the label of the training set, in the type of the pool's label, which may be one-hot."""
        if isinstance(label, Tensor | np.ndarray) and label.ndim == 1 and len(label) > 1:
            if len(label) != len(self.numbers) or len(self.classes) != len(self.numbers):
                raise ConfigurationError(
                    f"The pool has one-hot labels of length {len(label)} for {len(self.numbers)} classes, the training"
                    f" set {len(self.classes)} classes. Give a pool with the classes of the training set."
                )
            return label[np.argsort(self.numbers)]
        value = self.numbers[int(label)]
        if isinstance(label, Tensor):
            return torch.full_like(label, value)
        return np.full_like(label, value) if isinstance(label, np.ndarray) else type(label)(value)


def in_class_order(pool: Any, classes: Sequence[str] | None, pool_classes: Sequence[str] | None = None) -> Any:
    """Return a pool whose labels are those of the training set, matched by the names of the classes.

    Args:
        pool: The pool; unchanged if its classes, or those of the training set, have no names, or if they are the same.
        classes: Names of the classes of the training set; None if they are not known.
        pool_classes: Names of the classes of the pool. Default: its ``classes``.

    Raises:
        ConfigurationError: The pool has a class that the training set does not have.
    """
    if classes is None:
        return pool
    if pool_classes is None and type(pool) is ConcatDataset and dataset_class_names(pool) is None:
        parts = [in_class_order(part, classes) for part in pool.datasets]
        is_same = all(part is own for part, own in zip(parts, pool.datasets, strict=True))
        return pool if is_same else ConcatDataset(parts)
    names = dataset_class_names(pool) if pool_classes is None else list(pool_classes)
    if names is None or names == list(classes):
        return pool
    number = {name: k for k, name in enumerate(classes)}
    unknown = [name for name in names if name not in number]
    if unknown or len(set(names)) < len(names):
        raise ConfigurationError(
            f"The pool has the classes {_abbreviated(names)}, the training set {_abbreviated(classes)}:"
            f" {_abbreviated(unknown) if unknown else 'a name that occurs twice'} cannot be matched. Give a pool whose"
            " `classes` are those of the training set, in any order; a pool with other labels needs a target_transform."
        )
    return RenumberedPool(pool, [number[name] for name in names], classes)


def pool_in_class_order(
    pool: Any, view: Any, training_classes: Sequence[str] | None, class_names: Sequence[str]
) -> tuple[Any, Any]:
    """Return a pool and its view, which may be None, with the labels of the training set.

    Args:
        pool: The pool.
        view: The same examples through the transform of validation, or None.
        training_classes: Names of the classes of the training set; None if they are not known.
        class_names: Names of the classes of the validation set.

    Raises:
        ConfigurationError: The pool has other classes, or classes in another order than a training set without
            names.
    """
    pool_names = dataset_class_names(pool)
    if training_classes is None and pool_names is not None and pool_names != list(class_names):
        if set(pool_names) & set(class_names):
            raise ConfigurationError(
                "The pool has the classes of the validation set in another order, or only some of them, and the"
                " training set has no names to match them by. Give it an attribute `classes`, or a pool whose"
                " labels are in the order of the training set."
            )
        return pool, view
    if view is not None:
        view = in_class_order(view, training_classes, dataset_class_names(view) or pool_names)
    return in_class_order(pool, training_classes), view


def _abbreviated(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name, 30) for name in names[:_SHOWN])
    return f"{shown}, ... ({len(names)})" if len(names) > _SHOWN else shown
