"""The cost of a validation: how much of its time and memory is spent, and which share of the examples is embedded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from time import perf_counter

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lightning_failures.core.budget import read_bytes, read_time, share_that_fits

EMBEDDING_SHARE = 0.5
"""Share of the time that embedding of uncached images may take; the rest is for the analysis."""

PLANNED_SHARE = 0.7
"""Share of the embedding time that a sample is planned to take."""

TOLERATED_SHARE = 1.5
"""Share of the embedding time that a sample may be forecast to take before it shrinks again. Times vary, a sample never
grows within a validation, and one that has shrunk to nothing has cost time in vain; hence the distance to the plan."""

MINIMUM_SHARE = 0.1
"""Share of the embedding time that a sample may take in addition if all of it is spent before the last batch."""

PROBE_IMAGES = 8
"""Number of images that are embedded at once to measure the cost of one."""

MAX_COSTS = 32
"""Number of embedding times that are remembered."""


class SampleBudget:
    """Decides which share of a loader's examples is embedded and analysed, so that they fit the budget.

    Each batch is planned first; then its costs are recorded. The share shrinks as the batches turn out to need more
    memory, or their new images more time, than there is. Cached images are free: the sample of a later epoch holds the
    sample of an earlier one and as many new images as there is time for, until all are cached.

    Args:
        seconds: Time for embedding. None: no limit.
        memory: Bytes for the analysis. None: no limit.
        dim: Length of the embeddings of one example that a process holds, summed over the encoders.
        batches: Number of batches; if it is not known, as many batches are expected as have been seen.
        costs: Pairs (images, seconds) of earlier embeddings. The list is extended in place.

    Attributes:
        share: Share of the examples in the sample, from 0 to 1: those whose sampling rank is below it.
        spent: Time spent on embedding, in seconds.

    >>> budget = SampleBudget(seconds=10.0, batches=10, costs=[(10, 1.0)])
    >>> sampling_ranks = np.linspace(0, 1, 10, endpoint=False)
    >>> budget.plan_batch(10, sampling_ranks)  # 10 batches of 10 new images take 10 seconds
    >>> budget.share
    1.0
    >>> budget = SampleBudget(seconds=2.0, batches=10, costs=[(10, 1.0)])
    >>> budget.plan_batch(10, sampling_ranks)  # there is time for 20 images, and 14 are planned
    >>> budget.share
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
        self._planned_batches = 0
        self._seen_examples = 0
        self._batches_with_new_images = 0
        self._new_in_batch = self._unprocessed_in_batch = 0  # new images of the current batch
        self._new_images = np.empty(0)  # sampling ranks of all new images so far
        self._embeds_whole_batches = False
        self._is_warm = bool(self._costs)

    @property
    def threshold(self) -> float:
        """Sampling rank below which images are embedded: the share, or 1 to embed ahead for the next validation."""
        has_time = self._seconds is not None and self.spent < PLANNED_SHARE * self._seconds
        return 1.0 if self._embeds_whole_batches and has_time else self.share

    def plan_batch(self, examples: int, new_images: NDArray[np.float64], *, rows_per_example: int = 1) -> None:
        """Update the share for a batch before it is embedded.

        Args:
            examples: Number of examples of the batch, in the sample or not.
            new_images: Sampling ranks of the examples that have no embedding yet.
            rows_per_example: Number of rows that an example has in the grades.
        """
        self._planned_batches += 1
        self._seen_examples += examples
        self._batches_with_new_images += len(new_images) > 0
        self._new_in_batch = self._unprocessed_in_batch = len(new_images)
        expected_examples = self._seen_examples * (1 + self._batches_to_come / self._planned_batches)
        self.fit_memory(rows_per_example * expected_examples)
        if self._seconds is not None:
            self._new_images = np.concatenate([self._new_images, new_images])
            self._fit_time()

    def portions(self, sampling_ranks: NDArray[np.float64]) -> Iterator[slice]:
        """Yield slices of the new images to embed, whose sampling ranks ascend; call ``record_cost`` for each.

        As long as the cost of an image is unknown, a slice holds a few images.
        """
        start = 0
        while self._seconds is not None and not self._costs and start < np.searchsorted(sampling_ranks, self.share):
            stop = min(start + PROBE_IMAGES, len(sampling_ranks))
            yield slice(start, stop)
            start = stop
        stop = int(np.searchsorted(sampling_ranks, self.threshold))
        if stop > start:
            yield slice(start, stop)

    def record_cost(self, images: int, seconds: float) -> None:
        """Record what embedding took and update the share; the first embedding is slower and not remembered."""
        self.spent += seconds
        self._unprocessed_in_batch = max(self._unprocessed_in_batch - images, 0)
        if self._is_warm:
            self._costs.append((images, seconds))
            del self._costs[:-MAX_COSTS]
            self._fit_time()
        self._is_warm = True

    def fit_memory(self, examples: float, largest_class: float = 0.0) -> None:
        """Shrink the share to fit the memory, given the number of examples and of those in the largest class."""
        if self._memory is not None:
            self.share = min(self.share, share_that_fits(self._memory, examples, self._dim, largest_class))

    @property
    def _batches_to_come(self) -> float:
        """Number of batches after the current one."""
        if math.isfinite(self._batches):
            return max(self._batches - self._planned_batches, 0.0)
        return float(self._planned_batches)

    def _fit_time(self) -> None:
        """Shrink the share if embedding is forecast to take too long."""
        self._new_images = self._new_images[self._new_images < self.share]
        if self._seconds is None or not self._costs or not len(self._new_images):
            return
        # remaining batches, including the unprocessed part of the current one
        batches = self._batches_to_come + self._unprocessed_in_batch / max(self._new_in_batch, 1)
        if not batches:
            return

        # the remaining batches are expected to hold the same share of new images, at every sampling rank, as those seen
        per_batch, per_image = _cost_model(self._costs)
        remaining_examples = self._seen_examples / max(self._planned_batches, 1) * batches
        cost_per_seen_image = per_image * remaining_examples / self._seen_examples
        overhead = batches * per_batch * self._batches_with_new_images / self._planned_batches
        fixed = self.spent + overhead
        if fixed + len(self._new_images) * cost_per_seen_image <= TOLERATED_SHARE * self._seconds:
            return

        seconds_left = max(PLANNED_SHARE * (self._seconds - fixed / TOLERATED_SHARE), 0.0)
        overhead_dominates = overhead > 0.5 * self._seconds
        if not overhead_dominates and self._planned_batches > 1:
            # a sample that is empty in the end would have cost time in vain
            seconds_left = max(seconds_left, MINIMUM_SHARE * self._seconds)
        affordable = min(int(seconds_left / max(cost_per_seen_image, 1e-9)), len(self._new_images) - 1)
        self.share = float(np.partition(self._new_images, affordable)[affordable])
        # if a few images of every batch take too long, embed a few batches as a whole
        self._embeds_whole_batches = overhead_dominates and affordable == 0


def _cost_model(costs: list[tuple[int, float]]) -> tuple[float, float]:
    """Return the cost of a batch and of each of its images, by least squares; neither is negative.

    >>> [round(cost, 6) for cost in _cost_model([(10, 1.2), (5, 0.7), (1, 0.3)])]
    [0.2, 0.1]
    >>> [round(cost, 6) for cost in _cost_model([(8, 0.4), (8, 0.8)])]  # of equal batches: all by the image
    [0.0, 0.075]
    """
    images, seconds = np.array(costs, dtype=np.float64).T
    mean_per_image = float(seconds.sum() / images.sum())
    per_image = mean_per_image
    if np.ptp(images) > 0:
        slope = float(np.polyfit(images, seconds, 1)[0])
        per_image = min(max(slope, 0.0), mean_per_image)
    per_batch = float(seconds.mean() - per_image * images.mean())
    return max(per_batch, 0.0), per_image


class EmbeddingBudget:
    """The time and memory budgets of a callback, and the duration of the epochs that the time may refer to.

    Args:
        time_budget: As in ``FailureModes``.
        memory_budget: As in ``FailureModes``.
        say_once: Emits each distinct message at most once.
    """

    def __init__(
        self, time_budget: float | str | None, memory_budget: float | str | None, say_once: Callable[[str], None]
    ) -> None:
        self._time = None if time_budget is None else read_time(time_budget)
        self._memory = None if memory_budget is None else read_bytes(memory_budget)
        self._say_once = say_once
        self._costs: list[tuple[int, float]] = []
        self._epoch_began: float | None = None
        self._last_epoch: float | None = None  # duration of the last complete epoch
        self._paused = 0.0
        self._paused_at: float | None = None

    def begin_epoch(self) -> None:
        """Start to time an epoch of training."""
        self._epoch_began, self._paused = perf_counter(), 0.0

    def end_epoch(self, trainer: Trainer) -> None:
        """Record the duration of the finished epoch."""
        self._last_epoch = None
        self._last_epoch, self._epoch_began = self.epoch_seconds(trainer), None

    def reset(self) -> None:
        """Forget the durations of an earlier training."""
        self._epoch_began = self._last_epoch = None

    def pause(self) -> None:
        """Stop the clock of the epoch for a validation."""
        self._paused_at = perf_counter()

    def resume(self) -> None:
        """Restart the clock of the epoch after a validation."""
        if self._paused_at is not None:
            self._paused += perf_counter() - self._paused_at
        self._paused_at = None

    def seconds_per_loader(self, trainer: Trainer, *, loaders: int) -> float | None:
        """Return the time for each loader of the validation that begins; None: no limit."""
        if self._time is None:
            return None
        seconds = self._time.of(self.epoch_seconds(trainer))
        if seconds is not None:
            return seconds / max(loaders, 1)
        if not trainer.sanity_checking:
            self._say_once(
                "FailureModes(time_budget='...%') is a share of an epoch of training, but no epoch has been timed yet:"
                " this analysis runs without a time limit. Outside of fit give seconds."
            )
        return None

    def sample_budget(self, trainer: Trainer, index: int, seconds: float | None, dim: int) -> SampleBudget:
        """Return the budget of one loader.

        Args:
            trainer: Gives the number of batches.
            index: Index of the loader.
            seconds: Time for embedding and analysis.
            dim: Length of the embeddings of one example that a process holds, summed over the encoders.
        """
        batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
        return SampleBudget(
            seconds=None if seconds is None else EMBEDDING_SHARE * seconds,
            memory=self._memory,
            dim=dim,
            batches=batches[index] if index < len(batches) else math.inf,
            costs=self._costs,
        )

    def picture_seconds(self, trainer: Trainer) -> float | None:
        """Return the time for optional pictures, half an epoch; None without a finished epoch."""
        epoch = self.epoch_seconds(trainer)
        return None if epoch is None else epoch / 2

    def epoch_seconds(self, trainer: Trainer) -> float | None:
        """Return the duration of an epoch of training without validation.

        Within the first epoch the duration is extrapolated from the batches done. None outside of ``fit`` and before
        the first epoch.
        """
        if trainer.state.fn != "fit":
            return None
        if self._last_epoch is not None or self._epoch_began is None:
            return self._last_epoch
        elapsed = (self._paused_at or perf_counter()) - self._epoch_began - self._paused
        total_batches = trainer.num_training_batches
        batches_done = trainer.fit_loop.batch_idx + 1
        if math.isinf(total_batches) or batches_done < 1:
            return elapsed
        return elapsed * max(total_batches / batches_done, 1.0)
