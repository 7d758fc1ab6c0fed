"""Communication between the processes of one run, over a gloo group of our own.

The group is our own because the analysis on rank 0 outlasts the time-out of the training's collectives, and because
the rows to exchange live on the CPU, which NCCL does not serve. Every method is called by all ranks in the same order;
in a single process each is the identity.

No rank waits for one that has failed: every collective begins by exchanging values and errors. An error on one rank is
re-raised on all ranks at their next collective, once; every rank then leaves the enclosing ``synchronized()`` block.
"""

from __future__ import annotations

import io
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
_REPORTED = "_lightning_failures_reported"
TIMEOUT = timedelta(hours=6)


class OtherRankError(FailureModesError):
    """An error that was raised on another process and is re-raised on this one."""


class OtherRankConfigurationError(OtherRankError, ConfigurationError):
    """A configuration error that was raised on another process."""


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
        """Create the process group if the run has more than one process."""
        if self.group is None and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            group = dist.new_group(backend="gloo", timeout=TIMEOUT)
            assert isinstance(group, dist.ProcessGroup)  # all ranks are members
            self.group = group

    def close(self) -> None:
        """Destroy the process group."""
        if self.group is not None and dist.is_initialized():
            dist.destroy_process_group(self.group)
        self.group = None

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0, which does the work that must be done once."""
        return self.rank == 0

    @property
    def rank(self) -> int:
        """Rank of this process, from 0."""
        return 0 if self.group is None else dist.get_rank()

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    def gather_objects(self, value: T) -> list[T]:
        """Return the values of all ranks, in rank order, on every rank."""
        return self._exchange(value, None)

    def gather_results(self, work: Callable[[], T]) -> list[T]:
        """Run ``work`` on every rank and return all results, in rank order, on each; an error is raised on all."""
        return self._exchange(*_attempt(work))

    def run_all(self, work: Callable[[], T]) -> T:
        """Run ``work`` on every rank and return the result of this rank; an error on one rank is raised on all."""
        value, error = _attempt(work)
        self._exchange(None, error)
        return value

    def raise_if_any(self, error: Exception | None) -> None:
        """Raise on every rank if any rank has an error: its own error, else one that describes the other rank's."""
        self._exchange(None, error)

    @contextmanager
    def synchronized(self) -> Iterator[None]:
        """Leave the block on all ranks together: an error that one rank raises inside is raised on all."""
        try:
            yield
        except Exception as error:
            already_reported = _REPORTED in error.__dict__ or isinstance(error, OtherRankError)
            if self.group is not None and not already_reported:
                with suppress(Exception):
                    self.raise_if_any(error)
            raise
        self.raise_if_any(None)

    def broadcast(self, value: T) -> T:
        """Return the value of rank 0 on every rank."""
        if self.group is None:
            return value
        box = [self.run_all(lambda: _dumps(value) if self.is_first else b"")]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return cast(T, _loads(box[0]))

    def gather_rows(self, rows: Tensor, *, to: int = 0) -> Tensor | None:
        """Concatenate the rows (n_r, ...) of all ranks, in rank order, on rank ``to``; return None on the others.

        Ranks may have different numbers of rows, zero included; dtype and trailing dimensions are the same on all.
        """
        if self.group is None:
            return rows
        lengths = self.gather_objects(len(rows))

        def allocate() -> tuple[Tensor, list[Tensor]]:
            padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
            padded[: len(rows)] = rows
            return padded, [torch.empty_like(padded) for _ in lengths if self.rank == to]

        padded, parts = self.run_all(allocate)  # running out of memory is an error on all ranks
        dist.gather(padded, parts or None, dst=to, group=self.group)
        if not parts:
            return None
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def _exchange(self, value: T, error: Exception | None) -> list[T]:
        """Return the values of all ranks, or raise on all of them if any has an error."""
        if self.group is None:
            if error is not None:
                raise error
            return [value]
        gathered: list[Any] = [None] * self.world_size
        kind = OtherRankConfigurationError if isinstance(error, ConfigurationError) else OtherRankError
        summary = None if error is None else (kind, f"{type(error).__name__}: {error}")
        dist.all_gather_object(gathered, _dumps((value, summary)), group=self.group)
        gathered = [_loads(sent) for sent in gathered]
        if error is not None:
            # a mark on the error itself: a reference to the error would keep alive all that its frames hold
            error.__dict__[_REPORTED] = True
            raise error
        for rank, (_, summary) in enumerate(gathered):
            if summary is not None:
                kind, message = summary
                raise kind(f"process {rank}: {message}")
        return [value for value, _ in gathered]


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
        (u, D), NaN for ids that have no row on any rank; None, on all ranks, if this is true of all ids of all ranks.
    """
    mine: Tensor | None = None
    any_found = not any(len(asked) for asked in wanted)
    for rank, asked in enumerate(wanted):
        selected = torch.isin(ids, asked)
        rows = ranks.run_all(partial(rows_of, selected))
        all_ids = ranks.gather_rows(ids[selected], to=rank)
        all_rows = ranks.gather_rows(rows, to=rank)
        if all_ids is not None and all_rows is not None:
            mine = _select_by_id(asked, all_ids, all_rows)
            any_found = any_found or len(all_ids) > 0
    return mine if any(ranks.gather_objects(any_found)) else None


def _select_by_id(wanted: Tensor, ids: Tensor, rows: Tensor) -> Tensor:
    """Return the row of each wanted id (u,), ascending, from ids (n,) that may repeat; NaN for an id without a row."""
    if torch.equal(ids, wanted):
        return rows
    order = torch.argsort(ids, stable=True)
    first = torch.searchsorted(ids[order], wanted).clamp(max=max(len(order) - 1, 0))
    if len(order) == 0:
        return rows.new_full((len(wanted), *rows.shape[1:]), torch.nan)
    selected = rows[order[first]]
    selected[ids[order[first]] != wanted] = torch.nan
    return selected


class _Pickler(pickle.Pickler):
    """Pickle tensors as arrays; torch calls ``torch.save`` for each, which a user may have wrapped or replaced."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is not Tensor:
            return NotImplemented
        try:
            return torch.from_numpy, (value.numpy(),)
        except (RuntimeError, TypeError):  # on another device, with a gradient, or of a type that NumPy lacks
            return NotImplemented


def _dumps(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer).dump(value)
    return buffer.getvalue()


def _loads(sent: bytes) -> Any:
    return pickle.loads(sent)  # noqa: S301 - it comes from a process of this very run


def _attempt(work: Callable[[], T]) -> tuple[T, Exception | None]:
    """Return the result of ``work`` and its error; after an error the result is not to be used."""
    try:
        return work(), None
    except Exception as error:
        return cast(T, None), error
