"""Lists of class names in the forms that datasets and users give them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

ALL = "all"
"""Name of the only group of examples without labels."""

_ABSENT = "no "


def names_in_order(names: Any) -> list[Any] | None:
    """Return class names in the order of labels; None if the argument is no list of names.

    Args:
        names: A sequence, an array, a pandas Index or Series, or a mapping between names and the labels 0 ... K-1, in
            either direction.

    >>> names_in_order({"dog": 1, "cat": 0}), names_in_order({1: "dog", 0: "cat"}), names_in_order({"cat": 7})
    (['cat', 'dog'], ['cat', 'dog'], None)
    """
    if isinstance(names, Mapping):
        for name_of in (dict(names), {value: key for key, value in names.items() if _hashable(value)}):
            if len(name_of) == len(names) and all(_is_index(label) for label in name_of):
                ordered = sorted(name_of)
                return [name_of[label] for label in ordered] if ordered == list(range(len(ordered))) else None
        return None
    if isinstance(names, str | bytes):
        return None
    if isinstance(names, Sequence | np.ndarray):
        return list(names)
    # a pandas Index or Series, a view of the keys of a dict: ordered, with a length, but no Sequence
    has_order = all(hasattr(names, method) for method in ("__len__", "__iter__"))
    return list(names) if has_order and not isinstance(names, set | frozenset) else None


def unique_class_names(names: Any) -> list[str] | None:
    """Return the class names as distinct texts: the first of several synonyms, with the index if two classes share it.

    None if the argument is no list of names, see :func:`names_in_order`.

    >>> unique_class_names(["crane", ("cat", "kitty"), "crane"])
    ['crane (0)', 'cat', 'crane (2)']
    """
    ordered = names_in_order(names)
    if ordered is None:
        return None
    texts = [str(name[0] if isinstance(name, tuple | list) and name else name) for name in ordered]
    count = Counter(texts)
    return [f"{text} ({k})" if count[text] > 1 else text for k, text in enumerate(texts)]


def absent_condition(name: str, names: Collection[str]) -> str | None:
    """Return the condition that a class is the absence of: "edema" for "no edema" beside "edema"; None for others.

    A multilabel task has both classes for each condition, and a binary task with a single name has both too; see
    :func:`~lightning_failures.data.grading.expand_class_names`.

    >>> names = ("no edema", "edema", "no entry")
    >>> [absent_condition(name, names) for name in names]
    ['edema', None, None]
    """
    condition = name.removeprefix(_ABSENT)
    return condition if condition != name and condition in names else None


def both_classes(condition: str) -> tuple[str, str]:
    """Return the names of the two classes of a condition: absent and present.

    >>> both_classes("edema")
    ('no edema', 'edema')
    """
    return _ABSENT + condition, condition


def class_list_difference(names: Sequence[str], others: Sequence[str]) -> str | None:
    """Return the first difference of two lists of class names as text; None if they are equal.

    >>> class_list_difference(["cat", "dog"], ["dog", "cat"])
    "label 0 is 'cat' there and 'dog' here"
    >>> class_list_difference(["cat"], ["cat", "dog"])
    '1 classes there and 2 here'
    """
    for label, (there, here) in enumerate(zip(names, others, strict=False)):
        if there != here:
            return f"label {label} is {there!r} there and {here!r} here"
    return None if len(names) == len(others) else f"{len(names)} classes there and {len(others)} here"


def _is_index(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _hashable(value: Any) -> bool:
    return isinstance(value, str | Integral | tuple)
