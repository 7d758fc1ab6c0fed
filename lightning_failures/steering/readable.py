"""Items of a pool that can be read and put into one batch with the others; one that cannot is left out and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from lightning_failures.core.text import clean
from lightning_failures.errors import DataError, FailureModesError
from lightning_failures.steering.loader_patch import form_of

_TRIED, _SHARE = 16, 0.5


@dataclass(frozen=True)
class PoolItem:
    """One item of a pool.

    Attributes:
        id: Its index.
        value: The item, unless it cannot be read.
        error: Why it cannot be read, or None.
    """

    id: int
    value: Any = None
    error: str | None = None


class ReadableItems(Dataset[PoolItem]):
    """Some items of a pool; one that raises an error is returned with the error.

    Args:
        pool: The pool.
        ids: Indices of the items.
    """

    def __init__(self, pool: Any, ids: Sequence[int]) -> None:
        self.pool, self.ids = pool, list(ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> PoolItem:
        number = self.ids[index]
        try:
            return PoolItem(number, self.pool[number])
        except FailureModesError:  # of the form of all items
            raise
        except Exception as error:
            return PoolItem(number, error=f"{type(error).__name__}: {clean(str(error), 100)}")


def common_form(pool: Any) -> Any:
    """Return the form that most of the first items have; None if their forms vary, as images of any size do."""
    some = ReadableItems(pool, range(min(_TRIED, len(pool))))
    items = [some[k] for k in range(len(some))]
    forms = [form_of(item.value) for item in items if item.error is None]
    most = max(forms, key=forms.count, default=None)
    return most if forms.count(most) > _SHARE * len(forms) else None


def readable_batches(
    pool: Any,
    ids: Sequence[int],
    collate: Callable[[list[Any]], Any],
    left_out: dict[int, str],
    *,
    batch_size: int,
    generator: torch.Generator,
    **workers: Any,
) -> Iterator[tuple[list[int], Any]]:
    """Yield ids and batch of the items that can be read and that have the form of the others, some at a time.

    Args:
        pool: The pool.
        ids: Indices of the items.
        collate: Makes batches.
        left_out: Gets the reason for each item that is left out, by id.
        batch_size: Number of items read at once.
        generator: Seeds the workers.
        workers: Arguments of a DataLoader about workers.

    Raises:
        DataError: None of the items can be read.
    """
    form, any_kept = common_form(pool), False
    items = ReadableItems(pool, ids)
    for read in DataLoader(items, batch_size=batch_size, collate_fn=list, generator=generator, **workers):
        kept = []
        for item in read:
            if item.error is not None:
                left_out[item.id] = item.error
            elif form is not None and form_of(item.value) != form:
                left_out[item.id] = f"looks like {form_of(item.value)}, unlike {form}"
            else:
                kept.append(item)
        if kept:
            any_kept = True
            yield [item.id for item in kept], collate([item.value for item in kept])
    if left_out and not any_kept:
        number, reason = min(left_out.items())
        raise DataError(f"No item of the pool can be read. Of item {number}: {reason}")
