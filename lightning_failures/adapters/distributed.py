"""Agreement between the processes of one run, over a gloo group of our own.

A group of our own, because analysis on rank 0 outlasts the time-out of the training's collectives, and because
rows live on the CPU where NCCL cannot go. Every function is called by all ranks in the same order, and is the
identity in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_failures.errors import FailureModesError

__all__ = ["Ranks"]

TIMEOUT = timedelta(hours=6)


class Ranks:
    """The processes of this run. ``open`` and ``close`` are idempotent.

    >>> ranks = Ranks()
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

    def gather_objects(self, value: Any) -> list[Any]:
        """Return the value of every rank, in rank order, on every rank."""
        if self.group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.group is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def agree(self, error: Exception | None) -> None:
        """Raise on every rank where any has an error: its own, or one that tells of the other. Collective."""
        told = self.gather_objects(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        for rank, message in enumerate(told):
            if message is not None:
                raise FailureModesError(f"process {rank}: {message}")

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """Concatenate the rows (n_r, ...) of all ranks, in rank order, on rank 0; None on the others.

        Ranks may have different numbers of rows, none among them; dtype and further dimensions are the same.
        """
        if self.group is None:
            return rows
        lengths: Sequence[int] = self.gather_objects(len(rows))
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in lengths] if self.is_first else None
        dist.gather(padded, parts, dst=0, group=self.group)
        if parts is None:
            return None
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
