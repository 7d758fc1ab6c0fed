"""Examples of a dataset that can be read and that look like the others; one that does not is left out and named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lightning_failures.core.text import clean
from lightning_failures.errors import FailureModesError

_TRIED, _SHARE = 16, 0.5


@dataclass(frozen=True)
class Unreadable:
    """The reason why an example cannot be read, in place of the example."""

    reason: str


def read_example(dataset: Any, index: int, form: Any = None) -> Any:
    """Return an example, or why it cannot be read, or that it has another form than ``form`` (None: any form)."""
    try:
        example = dataset[index]
    except FailureModesError:  # of the form of all examples
        raise
    except Exception as error:
        return Unreadable(f"{type(error).__name__}: {clean(str(error), 100)}")
    if form is not None and (own := form_of(example)) != form:
        return Unreadable(f"looks like {own}, unlike {form}")
    return example


def common_form(dataset: Any) -> Any:
    """Return the form that most of the first examples have; None if their forms vary, as images of any size do."""
    examples = [read_example(dataset, k) for k in range(min(_TRIED, len(dataset)))]
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
    return "number" if isinstance(item, int | float | np.number) else type(item).__name__
