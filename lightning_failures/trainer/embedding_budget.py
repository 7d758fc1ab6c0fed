"""What one validation may cost: how much of the time is spent, and so which examples are still looked at."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lightning_failures.core.budget import read_bytes, read_time, share_that_fits

FOR_EMBEDDING = 0.5
"""Share of the time that may go to images which the cache does not know; the rest is for the analysis."""


PLANNED, TOLERATED = 0.7, 1.5
"""Shares of the time for embedding: what a sample is planned to take, and what it may be forecast to take before it
shrinks once more. Times vary, a sample never grows again, and one that has shrunk to nothing was for nothing."""

SPARED = 0.1
"""Share of the time for embedding that a sample may take on top where all of it is spent before the end."""

PROBE = 8
"""Images that are embedded at once to learn what one costs."""

MOST_COSTS = 32
"""So many times of embedding are remembered."""


class SampleBudget:
    """Which share of the examples of a loader is looked at, so that it fits the budget.

    For each batch it is planned, then paid. The share shrinks as batches turn out to be too many for the memory, or
    their new images too slow for the time. What is cached already is free: the sample of a later epoch holds the
    smaller one of an earlier epoch and as many new images as there is time for, until all are known.

    Args:
        seconds: For embedding. None: no limit.
        memory: Bytes for the analysis. None: no limit.
        dim: Length of an example's embeddings, of all that one process holds.
        batches: How many are to come; where nobody knows, as many again as were seen.
        costs: Numbers of images and what their embedding took, in seconds, as known from before; it is added to.

    >>> allowance = SampleBudget(seconds=10.0, batches=10, costs=[(10, 1.0)])
    >>> places = np.linspace(0, 1, 10, endpoint=False)
    >>> allowance.plan(10, places)  # this batch and those to come have 100 new images: they take 10 seconds
    >>> allowance.share
    1.0
    >>> allowance = SampleBudget(seconds=2.0, batches=10, costs=[(10, 1.0)])
    >>> allowance.plan(10, places)  # there is time for 20, and 14 are planned for
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
        costs: list[tuple[int, float]] | None = None,
    ) -> None:
        self.share = 1.0
        self.spent = 0.0
        self._seconds, self._memory, self._dim, self._batches = seconds, memory, dim, batches
        self._costs = [] if costs is None else costs
        self._done = self._seen = self._with_lacking = 0
        self._at_hand = self._unpaid = 0  # new images of the batch at hand, and those to be embedded yet
        self._lacking = np.empty(0)
        self._for_later = False
        self._warm = bool(self._costs)

    @property
    def reach(self) -> float:
        """How far down the line images are embedded: the share, or further, so that the next validation has them."""
        saving_up = self._for_later and self._seconds is not None and self.spent < PLANNED * self._seconds
        return 1.0 if saving_up else self.share

    def plan(self, seen: int, lacking: NDArray[np.float64], *, rows: int = 1) -> None:
        """Take account of a batch before it is embedded.

        Args:
            seen: Its number of examples, looked at or not.
            lacking: Places in line of those that have no embedding yet.
            rows: How many rows an example has among the grades.
        """
        self._done += 1
        self._seen += seen
        self._with_lacking += len(lacking) > 0
        self._at_hand = self._unpaid = len(lacking)
        self.fit(rows * self._seen * (1 + self._to_come / self._done))
        if self._seconds is not None:
            self._lacking = np.concatenate([self._lacking, lacking])
            self._shrink()

    def portions(self, places: NDArray[np.float64]) -> Iterator[slice]:
        """Yield what to embed of the images that lack it, whose places ascend; call ``pay`` for each.

        As long as nobody knows what an image costs, these are a few at a time.
        """
        done = 0
        while self._seconds is not None and not self._costs and done < np.searchsorted(places, self.share):
            yield slice(done, done := min(done + PROBE, len(places)))
        if (wanted := int(np.searchsorted(places, self.reach))) > done:
            yield slice(done, wanted)

    def pay(self, images: int, seconds: float) -> None:
        """Take account of what was embedded; the first time is not the rule."""
        self.spent += seconds
        self._unpaid = max(self._unpaid - images, 0)
        if self._warm:
            self._costs.append((images, seconds))
            del self._costs[:-MOST_COSTS]
            self._shrink()
        self._warm = True

    def fit(self, examples: float, largest_class: float = 0.0) -> None:
        """Take account of how many examples there are, and how many of the largest class."""
        if self._memory is not None:
            self.share = min(self.share, share_that_fits(self._memory, examples, self._dim, largest_class))

    @property
    def _to_come(self) -> float:
        """Batches after the one at hand."""
        return max(self._batches - self._done, 0.0) if math.isfinite(self._batches) else float(self._done)

    @property
    def _ahead(self) -> tuple[float, float]:
        """Batches and examples to come, with what is not paid yet of the one at hand."""
        batches = self._to_come + self._unpaid / max(self._at_hand, 1)
        return batches, self._seen / max(self._done, 1) * batches

    def _shrink(self) -> None:
        """Leave out those at the end of the line if the forecast is too long."""
        self._lacking = self._lacking[self._lacking < self.share]
        if self._seconds is None or not self._costs or not len(self._lacking):
            return
        # as many of those to come are new, up to any place in line, as were of those seen
        batches, examples = self._ahead
        if not batches:
            return
        per_batch, per_image = _line(self._costs)
        like_seen = per_image * examples / self._seen
        overhead = batches * per_batch * self._with_lacking / self._done
        fixed = self.spent + overhead
        if fixed + len(self._lacking) * like_seen > TOLERATED * self._seconds:
            left = max(PLANNED * (self._seconds - fixed / TOLERATED), 0.0)
            by_batch = overhead > 0.5 * self._seconds
            if not by_batch and self._done > 1:  # a sample that were empty in the end would have been for nothing
                left = max(left, SPARED * self._seconds)
            affordable = min(int(left / max(like_seen, 1e-9)), len(self._lacking) - 1)
            self.share = float(np.partition(self._lacking, affordable)[affordable])
            # a few images of every batch would take too long: take whole batches
            self._for_later = by_batch and affordable == 0


def _line(costs: list[tuple[int, float]]) -> tuple[float, float]:
    """What a batch costs, and each of its images, by least squares; neither is negative.

    >>> [round(cost, 6) for cost in _line([(10, 1.2), (5, 0.7), (1, 0.3)])]
    [0.2, 0.1]
    """
    images, seconds = np.array(costs, dtype=np.float64).T
    spread = images - images.mean()
    slope = mean = float(seconds.sum() / images.sum())
    if spread.any():
        slope = min(max(float(spread @ seconds / (spread @ spread)), 0.0), mean)
    return max(float(seconds.mean() - slope * images.mean()), 0.0), slope


class EmbeddingBudget:
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
        self._costs: list[tuple[int, float]] = []
        self._began: float | None = None
        self._epoch: float | None = None  # seconds of the last whole one
        self._paused = 0.0
        self._paused_at: float | None = None

    def begin_epoch(self) -> None:
        """An epoch of training begins."""
        self._began, self._paused = time.perf_counter(), 0.0

    def end_epoch(self, trainer: Trainer) -> None:
        """It is over: so long it took."""
        self._epoch = None
        self._epoch, self._began = self.epoch_seconds(trainer), None

    def reset(self) -> None:
        """Another training: its epochs are not timed yet."""
        self._began = self._epoch = None

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
        seconds = self._time.of(self.epoch_seconds(trainer))
        if seconds is not None:
            return seconds / max(loaders, 1)
        if not trainer.sanity_checking:
            self._say_once(
                "FailureModes(time_budget='...%') is a share of an epoch of training, and none has been timed: this"
                " analysis takes as long as it takes. Outside of fit give seconds."
            )
        return None

    def allowance(self, trainer: Trainer, index: int, seconds: float | None, dim: int) -> SampleBudget:
        """For one loader.

        Args:
            trainer: Tells how many batches there are.
            index: Of the loader.
            seconds: For embedding and analysis.
            dim: Length of an example's embeddings, of all that are in the memory of one process.
        """
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        return SampleBudget(
            seconds=None if seconds is None else FOR_EMBEDDING * seconds,
            memory=self._bytes,
            dim=dim,
            batches=batches[index] if index < len(batches) else math.inf,
            costs=self._costs,
        )

    def epoch_seconds(self, trainer: Trainer) -> float | None:
        """What an epoch of training takes, without validation; None outside of ``fit`` and before one was timed."""
        if trainer.state.fn != "fit":
            return None
        if self._epoch is not None or self._began is None:
            return self._epoch
        elapsed = (self._paused_at or time.perf_counter()) - self._began - self._paused
        total = trainer.num_training_batches
        done = trainer.fit_loop.batch_idx + 1
        return elapsed if math.isinf(total) or done < 1 else elapsed * max(total / done, 1.0)
