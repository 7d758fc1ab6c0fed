"""Attributes of datasets: their length, their class names, and values for each example."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from lightning_failures.data.class_names import class_list_difference, unique_class_names
from lightning_failures.data.grading import LABEL_KEYS, Columns, column_named


def dataset_length(dataset: Any) -> int | None:
    """Return the number of examples of a dataset; None if it has no length."""
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def dataset_attribute(dataset: Any, name: str) -> Any:
    """Return an attribute of a dataset, also through wrappers such as ``Subset``; None if no dataset has it.

    The columns of a Hugging Face dataset count as its attributes, and the names of its class label as ``classes``.
    Sequences with a value for each example (all but ``classes``) are indexed by ``Subset.indices``, always by position,
    and joined by ``ConcatDataset``; any other attribute must be the same in all the parts.

    >>> from torch.utils.data import Subset
    >>> class Data(list):
    ...     classes, groups = ["cat", "dog"], [7, 8, 9]
    >>> subset = Subset(Data([0, 1, 2]), [2, 0])
    >>> dataset_attribute(subset, "classes"), dataset_attribute(subset, "groups")
    (['cat', 'dog'], [9, 7])
    """
    own = getattr(dataset, name, None)
    if own is None:
        own = _names_of_features(dataset) if name == "classes" else _column(dataset, name)
    if own is not None:
        return own
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, list):
        return _joined(name, parts, [dataset_attribute(part, name) for part in parts])
    inner = getattr(dataset, "dataset", None)
    if inner is None:
        return None
    value = dataset_attribute(inner, name)
    indices = getattr(dataset, "indices", None)
    if name == "classes" or indices is None or not hasattr(value, "__len__") or len(value) != len(inner):
        return value
    by_position = getattr(value, "iloc", value)  # the index of a pandas Series need not be 0 ... n - 1
    return [by_position[operator.index(i)] for i in indices]


def dataset_class_names(dataset: Any) -> list[str] | None:
    """Return the distinct class names of a dataset in the order of labels; None if it has none.

    They stand in ``dataset.classes`` or, in a Hugging Face dataset, in the type of the column of labels.
    """
    return unique_class_names(dataset_attribute(dataset, "classes"))


def dataset_columns(dataset: Any) -> Columns:
    """Return the columns of images and of class labels of a Hugging Face dataset, also through wrappers.

    Nothing is found in datasets of other kinds, or if the parts of a concatenation differ.
    """
    parts = getattr(dataset, "datasets", None)
    if isinstance(parts, list) and parts:
        found = {dataset_columns(part) for part in parts}
        return found.pop() if len(found) == 1 else Columns()
    features = _features(dataset)
    if not features:
        inner = getattr(dataset, "dataset", None)
        return Columns() if inner is None else dataset_columns(inner)
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    return Columns(tuple(images), tuple(_class_labels(features)))


def _features(dataset: Any) -> Mapping[str, Any]:
    """Return the types of the columns of a Hugging Face dataset, by name; empty for other datasets."""
    features = getattr(dataset, "features", None)
    return features if isinstance(features, Mapping) else {}


def _class_labels(features: Mapping[str, Any]) -> dict[str, Any]:
    """Return the class names of each column of class labels; a list of them is one of a multilabel task."""
    found = {}
    for column, kind in features.items():
        names = getattr(getattr(kind, "feature", kind), "names", None)
        if isinstance(names, list | tuple) and names:
            found[column] = names
    return found


def _names_of_features(dataset: Any) -> Any:
    """Return the class names of the column that is read as the labels, by its type; None if it has none."""
    features = _features(dataset)
    labels = _class_labels(features)
    return labels.get(column_named(features, LABEL_KEYS, tuple(labels)) or "")


def _column(dataset: Any, name: str) -> list[Any] | None:
    """Return a column of a Hugging Face dataset, without the user's format and transform; None for images."""
    kind = _features(dataset).get(name)
    if kind is None or type(kind).__name__ == "Image" or dataset_length(dataset) is None:
        return None
    return list(dataset.with_format(None)[name])


def class_list_problem(reference: Any, others: Mapping[str, Any]) -> str | None:
    """Return a sentence on the first dataset whose class names differ from those of the validation set; None if none.

    Args:
        reference: The validation set; without class names nothing is compared.
        others: Datasets by what they are; those without class names are skipped.
    """
    names = dataset_class_names(reference)
    for what, dataset in others.items():
        found = dataset_class_names(dataset)
        difference = None if names is None or found is None else class_list_difference(names, found)
        if difference is not None:
            return (
                f"The {what} has other classes than the validation set ({difference}), so the same label means another"
                " class. Build both from one list of classes."
            )
    return None


def _joined(name: str, parts: list[Any], values: list[Any]) -> Any:
    """Return the value of an attribute for a concatenation of datasets; None if the parts differ."""
    if name == "classes":
        lists = [unique_class_names(value) for value in values]
        return values[0] if lists and lists[0] is not None and all(one == lists[0] for one in lists) else None
    per_example = all(
        hasattr(value, "__len__") and len(value) == len(part) for value, part in zip(values, parts, strict=True)
    )
    if per_example:
        return [one for value in values for one in value]
    all_equal = all(value is not None and list(value) == list(values[0]) for value in values)
    return values[0] if all_equal else None
