"""Agreement between the processes of one run, over a gloo group of our own.

A group of our own, because analysis on rank 0 outlasts the time-out of the training's collectives, and because
rows live on the CPU where NCCL cannot go. Every function is called by all ranks in the same order, and is the
identity in one process.

No rank waits for one that has failed: every collective begins with the same exchange of values and errors, so
that an error is told in place of whatever the others are about to do. It is told once; then all have left the
stretch of work (``together``) that they were in.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_failures.errors import ConfigurationError, FailureModesError

T = TypeVar("T")
_TOLD = "_lightning_failures_told"
TIMEOUT = timedelta(hours=6)


class OtherRankError(FailureModesError):
    """Another process has failed; this one goes along."""


class OtherRankConfigurationError(OtherRankError, ConfigurationError):
    """It has failed for a wrong configuration."""


class Communicator:
    """The processes of this run; ``open`` and ``close`` are idempotent.

    Implements :class:`~lightning_failures.data.partition.Workers`.

    >>> ranks = Communicator()
    >>> ranks.gather_objects("ok"), ranks.broadcast("id"), ranks.is_first
    (['ok'], 'id', True)
    """

    def __init__(self) -> None:
        self.group: dist.ProcessGroup | None = None

    def open(self) -> None:
        """Build the group, if the run has more than one process."""
        if self.group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=TIMEOUT)
            assert isinstance(group, dist.ProcessGroup)  # all ranks are members
            self.group = group

    def close(self) -> None:
        """Give the group up."""
        if self.group is not None and dist.is_initialized():
            dist.destroy_process_group(self.group)
        self.group = None

    @property
    def is_first(self) -> bool:
        """Whether this process does what is done once."""
        return self.group is None or dist.get_rank() == 0

    @property
    def number(self) -> int:
        """Of this process, from 0."""
        return 0 if self.group is None else dist.get_rank()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def gather_objects(self, value: T) -> list[T]:
        """Return the value of every rank, in rank order, on every rank."""
        return self._exchange(value, None)

    def each(self, work: Callable[[], T]) -> list[T]:
        """Run ``work`` on every rank; return what each gave, on all. An error of one is an error on all."""
        return self._exchange(*_attempt(work))

    def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank; return what it gave here. An error of one is an error of all."""
        value, error = _attempt(work)
        self._exchange(None, error)
        return value

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank where any has an error: its own, or one that tells of the other."""
        self._exchange(None, error)

    @contextmanager
    def together(self) -> Iterator[None]:
        """A stretch of work with collectives in it: an error of one, wherever it comes, is an error of all."""
        try:
            yield
        except Exception as error:
            # one that the others know of already, or told of themselves, is not told again
            if self.group is not None and _TOLD not in error.__dict__ and not isinstance(error, OtherRankError):
                with suppress(Exception):
                    self.agree(error)
            raise
        self.agree(None)

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        if self.group is None:
            return value
        box = [self.run(lambda: pickle.dumps(value) if self.is_first else b"")]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return cast(T, pickle.loads(box[0]))  # noqa: S301 - it comes from rank 0 of this very run

    def gather_rows(self, rows: Tensor, *, to: int = 0) -> Tensor | None:
        """Concatenate the rows (n_r, ...) of all ranks, in rank order, on one rank; None on the others.

        Ranks may have different numbers of rows, none among them; dtype and further dimensions are the same.
        """
        if self.group is None:
            return rows
        lengths = self.gather_objects(len(rows))

        def room() -> tuple[Tensor, list[Tensor]]:
            padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
            padded[: len(rows)] = rows
            return padded, [torch.empty_like(padded) for _ in lengths if self.number == to]

        padded, parts = self.run(room)  # memory is what may be lacking
        dist.gather(padded, parts or None, dst=to, group=self.group)
        if not parts:
            return None
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def _exchange(self, value: T, error: Exception | None) -> list[T]:
        if self.group is None:
            if error is not None:
                raise error
            return [value]
        found: list[Any] = [None] * self.size
        kind = OtherRankConfigurationError if isinstance(error, ConfigurationError) else OtherRankError
        told = None if error is None else (kind, f"{type(error).__name__}: {error}")
        dist.all_gather_object(found, (value, told), group=self.group)
        if error is not None:
            error.__dict__[_TOLD] = True  # a mark, because an error that is kept keeps all that its frames hold
            raise error
        for rank, (_, told) in enumerate(found):
            if told is not None:
                kind, message = told
                raise kind(f"process {rank}: {message}")
        return [value for value, _ in found]


def exchange_by_id(
    ranks: Communicator, ids: Tensor, rows_of: Callable[[Tensor], Tensor], wanted: Sequence[Tensor]
) -> Tensor | None:
    """Return the rows that this rank asks for by id, from whichever ranks hold them. Collective.

    Args:
        ranks: The processes.
        ids: (n,) int64, the ids whose rows this rank holds.
        rows_of: Returns the rows (m, D) of a selection (n,) bool of ``ids``.
        wanted: For each rank the ids (u,) that it asks for, ascending and distinct.

    Returns:
        (u, D); None, on all ranks, if any id has no row on any rank.
    """
    mine: Tensor | None = None
    for rank, asked in enumerate(wanted):
        selected = torch.isin(ids, asked)
        rows = ranks.run(partial(rows_of, selected))
        all_ids = ranks.gather_rows(ids[selected], to=rank)
        all_rows = ranks.gather_rows(rows, to=rank)
        if all_ids is not None and all_rows is not None:
            mine = _select_by_id(asked, all_ids, all_rows)
    return mine if all(ranks.gather_objects(mine is not None)) else None


def _select_by_id(wanted: Tensor, ids: Tensor, rows: Tensor) -> Tensor | None:
    """Return the row of each wanted id (u,), ascending, from ids (n,) that may repeat; None if one is missing."""
    if torch.equal(ids, wanted):
        return rows
    order = torch.argsort(ids, stable=True)
    first = torch.searchsorted(ids[order], wanted).clamp(max=max(len(order) - 1, 0))
    if len(order) < len(wanted) or not torch.equal(ids[order[first]], wanted):
        return None
    return rows[order[first]]


def _attempt(work: Callable[[], T]) -> tuple[T, Exception | None]:
    """What it gives, which nobody may look at where there is an error."""
    try:
        return work(), None
    except Exception as error:
        return cast(T, None), error
