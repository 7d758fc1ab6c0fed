"""Examples of a dataset that can be read and that look like the others; one that does not is left out and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from lightning_failures.core.text import clean
from lightning_failures.errors import FailureModesError

T = TypeVar("T")

TRIED = 16
"""Number of examples that show what the others look like."""

_SHARE = 0.5


class Unreadable(NamedTuple):
    """The reason why an example cannot be read, in place of the example."""

    reason: str


def tried(ids: Sequence[int], work: Callable[[], T]) -> T | Unreadable:
    """Return the result of some work on examples, or why it failed for a single one.

    Raises:
        Exception: The work failed for several examples, or because of the form of all examples.
    """
    try:
        return work()
    except FailureModesError:  # of the form of all examples
        raise
    except Exception as error:
        if len(ids) > 1:
            raise
        return Unreadable(f"{type(error).__name__}: {clean(str(error), 100)}")


def evenly_spaced(size: int, number: int = TRIED) -> list[int]:
    """Return at most ``number`` indices of a dataset, from its first to its last part, ascending.

    >>> evenly_spaced(4), evenly_spaced(320)[:3]
    ([0, 1, 2, 3], [0, 20, 40])
    """
    return sorted({k * size // number for k in range(number)}) if size else []


def read_example(dataset: Any, index: int, form: Any = None) -> Any:
    """Return an example, or why it cannot be read, or that it has another form than ``form`` (None: any form)."""
    example = tried([index], lambda: dataset[index])
    if isinstance(example, Unreadable):
        return example
    if example is None:  # what some datasets return for a file that cannot be read
        return Unreadable("the dataset returns None")
    if form is not None and (own := form_of(example)) != form:
        return Unreadable(f"looks like {own}, unlike {form}")
    return example


def common_form(dataset: Any) -> Any:
    """Return the form that most of some examples have; None if their forms vary, as images of any size do."""
    examples = [read_example(dataset, k) for k in evenly_spaced(len(dataset))]
    forms = [form_of(example) for example in examples if not isinstance(example, Unreadable)]
    most = max(forms, key=forms.count, default=None)
    return most if forms.count(most) > _SHARE * len(forms) else None


def form_of(item: Any) -> Any:
    """Return the types, keys and shapes of one example that decide how it is collated."""
    if isinstance(item, Mapping):
        return {key: form_of(value) for key, value in sorted(item.items())}
    if isinstance(item, tuple | list):
        return [form_of(value) for value in item]
    if isinstance(item, Tensor):
        # labels may be tensors in one dataset and integers in the other
        return "number" if item.ndim == 0 else f"{str(item.dtype).removeprefix('torch.')} {tuple(item.shape)}"
    if isinstance(item, Image.Image):  # whatever the format of its file
        return f"{item.mode} image"
    return "number" if isinstance(item, int | float | np.number) else type(item).__name__
