"""What one validation may cost: how much of the time is spent, and so which examples are still looked at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lightning_failures.budget import read_bytes, read_time, share_that_fits

__all__ = ["Allowance", "Spending"]

FOR_EMBEDDING = 0.5
"""Share of the time that may go to images which the cache does not know; the rest is for the analysis."""


PLANNED, TOLERATED = 0.7, 1.5
"""Shares of the time for embedding: what a sample is planned to take, and what it may be forecast to take before it
shrinks once more. Times vary, a sample never grows again, and one that has shrunk to nothing was for nothing."""


class Allowance:
    """Which share of the examples of a loader is looked at, so that it fits the budget.

    It shrinks as batches turn out to be too many for the memory, or their new images too slow for the time. What is
    cached already is free: the sample of a later epoch holds the smaller one of an earlier epoch and as many new images
    as there is time for, until all are known.

    Args:
        seconds: For embedding. None: no limit.
        memory: Bytes for the analysis. None: no limit.
        dim: Length of an example's embeddings, of all that one process holds.
        batches: How many are to come; where nobody knows, as many again as were seen.

    >>> allowance = Allowance(seconds=10.0, batches=10)
    >>> places = np.linspace(0, 1, 10, endpoint=False)
    >>> allowance.note(10, places, seconds=1.0)  # the other 90 will take 9 seconds: in time
    >>> allowance.share
    1.0
    >>> allowance.note(10, places, seconds=4.0)  # the other 80 will take 20: too long; for 8 there is time
    >>> allowance.share
    0.1
    """

    def __init__(
        self,
        *,
        seconds: float | None = None,
        memory: float | None = None,
        dim: int = 0,
        batches: float = math.inf,
    ) -> None:
        self.share = 1.0
        self.spent = 0.0
        self._seconds, self._memory, self._dim, self._batches = seconds, memory, dim, batches
        self._done = self._seen = 0
        self._new = np.empty(0)
        self._costs: list[tuple[int, float]] = []

    def note(self, seen: int, new: NDArray[np.float64], *, seconds: float) -> None:
        """Take account of a batch.

        Args:
            seen: Its number of examples, looked at or not.
            new: Places in line of those that were embedded.
            seconds: What this took.
        """
        self._done += 1
        self._seen += seen
        self.spent += seconds
        batches = self._batches - self._done if math.isfinite(self._batches) else float(self._done)
        to_come = self._seen * batches / self._done
        self.fit(self._seen + to_come)
        if self._seconds is None or to_come <= 0:
            return
        self._new = np.concatenate([self._new, new])
        self._new = self._new[self._new < self.share]
        if len(new):
            self._costs.append((len(new), seconds))
        if not len(self._new):
            return
        # as many of those to come are new, up to any place in line, as were of those seen
        per_batch, per_image = _line(self._costs)
        like_seen = per_image * to_come / self._seen
        fixed = self.spent + batches * per_batch
        if fixed + len(self._new) * like_seen > TOLERATED * self._seconds:
            affordable = int(max(PLANNED * self._seconds - fixed, 0.0) / max(like_seen, 1e-9))
            affordable = min(affordable, len(self._new) - 1)
            self.share = float(np.partition(self._new, affordable)[affordable])

    def fit(self, examples: float, largest_class: float = 0.0) -> None:
        """Take account of how many examples there are, and how many of the largest class."""
        if self._memory is not None:
            self.share = min(self.share, share_that_fits(self._memory, examples, self._dim, largest_class))


def _line(costs: list[tuple[int, float]]) -> tuple[float, float]:
    """What a batch costs, and each of its images, by least squares; neither is negative.

    >>> [round(cost, 6) for cost in _line([(10, 1.2), (5, 0.7), (1, 0.3)])]
    [0.2, 0.1]
    """
    images, seconds = np.array(costs, dtype=np.float64).T
    spread = images - images.mean()
    slope = float(spread @ seconds / max(spread @ spread, 1e-9))
    slope = (
        min(max(slope, 0.0), float(seconds.sum() / images.sum()))
        if spread.any()
        else float(seconds.sum() / images.sum())
    )
    return max(float(seconds.mean() - slope * images.mean()), 0.0), slope


class Spending:
    """The budgets of a callback, and the clock of the epoch that one of them may refer to.

    Args:
        time_budget: As in ``FailureModes``.
        memory_budget: As in ``FailureModes``.
        say_once: Tells a person something that is not worth telling twice.
    """

    def __init__(
        self, time_budget: float | str | None, memory_budget: float | str | None, say_once: Callable[[str], None]
    ) -> None:
        self._time = None if time_budget is None else read_time(time_budget)
        self._bytes = None if memory_budget is None else read_bytes(memory_budget)
        self._say_once = say_once
        self._began: float | None = None
        self._paused = 0.0
        self._paused_at: float | None = None

    def begin_epoch(self) -> None:
        """An epoch of training begins."""
        self._began, self._paused = time.perf_counter(), 0.0

    def pause(self) -> None:
        """A validation interrupts it."""
        self._paused_at = time.perf_counter()

    def go_on(self) -> None:
        """The training goes on."""
        if self._paused_at is not None:
            self._paused += time.perf_counter() - self._paused_at
        self._paused_at = None

    def seconds(self, trainer: Trainer, *, loaders: int) -> float | None:
        """For each loader of the validation that begins; None: as many as it takes."""
        if self._time is None:
            return None
        seconds = self._time.of(self._epoch_seconds(trainer))
        if seconds is not None:
            return seconds / max(loaders, 1)
        if not trainer.sanity_checking:
            self._say_once(
                "FailureModes(time_budget='...%') is a share of an epoch of training, and none has been timed: this"
                " analysis takes as long as it takes. Outside of fit give seconds."
            )
        return None

    def allowance(self, trainer: Trainer, index: int, seconds: float | None, dim: int) -> Allowance:
        """For one loader.

        Args:
            trainer: Tells how many batches there are.
            index: Of the loader.
            seconds: For embedding and analysis.
            dim: Length of an example's embeddings, of all that are in the memory of one process.
        """
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        return Allowance(
            seconds=None if seconds is None else FOR_EMBEDDING * seconds,
            memory=self._bytes,
            dim=dim,
            batches=batches[index] if index < len(batches) else math.inf,
        )

    def _epoch_seconds(self, trainer: Trainer) -> float | None:
        if self._began is None or trainer.state.fn != "fit":
            return None
        elapsed = (self._paused_at or time.perf_counter()) - self._began - self._paused
        total = trainer.num_training_batches
        done = trainer.fit_loop.batch_idx + 1
        return elapsed if math.isinf(total) or done < 1 else elapsed * max(total / done, 1.0)
