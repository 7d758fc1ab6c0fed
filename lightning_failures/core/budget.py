"""Limits of time and memory, and the size of the sample that fits them.

A time limit is met by skipping work: first images that are not embedded yet, then the classes with the fewest failures.
A memory limit is met by analysing a sample of the examples. The sample is drawn by a hash of the example's id, so it is
the same in every process and epoch, and a larger sample contains every smaller one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from time import perf_counter  # bound here: a test that replaces the clock of its own callbacks keeps it to itself

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.hashing import stable_hash

MAX_GRAM_EXAMPLES = 5000
"""Size of the sample on which a class with more examples is fitted, to limit the memory of its Gram matrix."""

SKIPPED_FOR_TIME = "left out: the time budget was spent on classes with more failures"
"""Reason of a class or group that is skipped because the deadline has passed."""

PROGRESS_DELAY = 10.0
"""Seconds of work before a progress bar appears."""

_SALT = 0xB4D6E7
_COPIES = 4.2  # copies of the embeddings at the peak of an analysis, measured
_GRAMS = 3.0  # copies of the largest Gram matrix, measured
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Deadline:
    """A point in time on the clock of this process.

    >>> Deadline.after(-1).passed, Deadline.after(60).passed
    (True, False)
    """

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return the deadline that is ``seconds`` from now."""
        return cls(perf_counter() + seconds)

    @property
    def passed(self) -> bool:
        """Whether the deadline has passed."""
        return perf_counter() >= self.at

    @property
    def left(self) -> float:
        """Seconds until the deadline, 0 if it has passed."""
        return max(self.at - perf_counter(), 0.0)


@dataclass(frozen=True)
class TimeLimit:
    """A limit in seconds, or as a share of the duration of a training epoch; exactly one is set."""

    seconds: float | None = None
    share: float | None = None

    def of(self, epoch: float | None) -> float | None:
        """Return the limit in seconds for epochs of ``epoch`` seconds; None if it depends on an unknown duration."""
        if self.share is None:
            return self.seconds
        return None if epoch is None else self.share * epoch


def read_time(limit: float | str) -> TimeLimit:
    """Parse a time limit: ``30`` (seconds) or ``"10%"`` (of an epoch).

    Raises:
        ValueError: The limit has another form.

    >>> read_time(30), read_time("10%")
    (TimeLimit(seconds=30.0, share=None), TimeLimit(seconds=None, share=0.1))
    """
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", limit) if isinstance(limit, str) else None
    value = float(share[1]) / 100 if share else float(limit)
    if isinstance(limit, bool) or not 0 < value < float("inf"):
        raise ValueError(limit)
    return TimeLimit(share=value) if share else TimeLimit(seconds=value)


def read_bytes(limit: float | str) -> int:
    """Parse a size in bytes: ``2_000_000_000``, ``"2 GB"`` or ``"2GiB"``.

    Raises:
        ValueError: The size has another form.

    >>> read_bytes("1.5 GiB") == 3 * 2**29
    True
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(b|[kmg]i?b)?\s*", str(limit).lower())
    if found is None or isinstance(limit, bool) or (size := int(float(found[1]) * _UNITS[found[2] or ""])) < 1:
        raise ValueError(limit)
    return size


def sampling_rank(ids: NDArray[np.int64], seed: int = 0) -> NDArray[np.float64]:
    """Return a pseudo-random rank in [0, 1) for each example, (N,) float64, from a hash of its id.

    The sample is the examples below a threshold, so a larger sample holds the smaller ones.

    >>> ranks = sampling_rank(np.arange(10_000))
    >>> bool(abs((ranks < 0.2).mean() - 0.2) < 0.02), bool(0 <= ranks.min() <= ranks.max() < 1)
    (True, True)
    """
    return (stable_hash(ids, seed + _SALT) >> np.uint64(11)).astype(np.float64) / 2.0**53


def bytes_of(examples: float, dim: int, largest_class: float = 0.0) -> float:
    """Estimate the peak memory of an analysis in bytes, from measurements that include the allocator's reserve.

    Args:
        examples: Number of analysed examples.
        dim: Length of their embeddings, summed over encoders.
        largest_class: Number of examples in the largest class, whose Gram matrix is in memory too.
    """
    return 4 * (_COPIES * examples * dim + _GRAMS * min(largest_class, MAX_GRAM_EXAMPLES) ** 2)


def share_that_fits(limit: float, examples: float, dim: int, largest_class: float) -> float:
    """Return the largest share of the examples whose analysis needs at most ``limit`` bytes, in steps of 0.001.

    >>> share_that_fits(2**30, 10_000, 512, 1_000), 0 < share_that_fits(2**20, 10_000, 512, 1_000) < 0.1
    (1.0, True)
    """
    low, high = 0, 1000
    while low < high:
        middle = (low + high + 1) // 2
        share = middle / 1000
        if bytes_of(share * examples, dim, share * largest_class) <= limit:
            low = middle
        else:
            high = middle - 1
    return low / 1000
