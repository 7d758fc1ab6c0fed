"""Rates of examples that may share sources, and the exact test that one rate exceeds another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.stats.intervals import effective_examples, wilson_interval

_ROUNDING = 1e-9


class Rate(NamedTuple):
    """The error rate of some examples, which count as ``effective`` independent ones.

    Attributes:
        examples: Number of examples.
        failures: Number of failures among them.
        effective: Number of independent examples that they are worth, at most ``examples``.
    """

    examples: int
    failures: int
    effective: float

    @property
    def rate(self) -> float:
        """Share of the examples that failed."""
        return self.failures / self.examples

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the rate, at the effective number of examples."""
        return wilson_interval(self.rate * self.effective, self.effective)


def rate_of(
    failed: BoolArray, rows: BoolArray, sources: NDArray[Any] | None = None, correlation: float | None = None
) -> Rate:
    """Return the error rate of the examples that a mask selects.

    Args:
        failed: (n,) bool.
        rows: (n,) bool, the examples; at least one.
        sources: (n,) sources of the examples; those of one source are not independent. None: each is its own.
        correlation: Correlation of failures within sources. None: that of all n examples.

    >>> rate_of(np.array([True, False, False]), np.array([True, True, False]))
    Rate(examples=2, failures=1, effective=2.0)
    """
    wrong = failed[rows]
    effective = float(len(wrong))
    if sources is not None:
        if correlation is None:
            correlation = correlation_within(failed, sources)
        source = np.unique(sources[rows], return_inverse=True)[1]
        # the few sources of a part may agree by chance, so those of all examples have a say
        of_part = effective_examples(wrong.astype(np.int64), 2, source)[1]
        of_all = len(wrong) / (1 + (_examples_beside(source) - 1) * correlation)
        effective = float(min(of_part, of_all))
    return Rate(len(wrong), int(wrong.sum()), effective)


def correlation_within(failed: BoolArray, sources: NDArray[Any]) -> float:
    """Return the correlation of failures within sources, in [0, 1], from the design effect of the error rate."""
    source = np.unique(sources, return_inverse=True)[1]
    design_effect = len(failed) / float(effective_examples(failed.astype(np.int64), 2, source)[1])
    beside = _examples_beside(source)
    return min(max((design_effect - 1) / (beside - 1), 0.0), 1.0) if beside > 1 else 0.0


def exact_p_values(pairs: Sequence[tuple[Rate, Rate]]) -> list[float]:
    """Return the p-value of each pair for the test that the first rate does not exceed the second.

    It is the one-sided p-value of Fisher's exact test at the effective numbers of examples, which are rounded against
    the alternative.

    >>> all_failed, none_failed = Rate(3, 3, 3.0), Rate(3, 0, 3.0)
    >>> [round(p, 3) for p in exact_p_values([(all_failed, none_failed), (none_failed, all_failed)])]
    [0.05, 1.0]
    """
    from scipy.stats import hypergeom  # type: ignore[import-untyped]  # slow to import

    if not pairs:
        return []
    n_inside, n_outside = np.array([[one.effective for one in pair] for pair in pairs]).T
    rate_inside, rate_outside = np.array([[one.rate for one in pair] for pair in pairs]).T
    k_inside = np.floor(rate_inside * n_inside + _ROUNDING)
    k_outside = np.ceil(rate_outside * n_outside - _ROUNDING)
    n_inside, n_outside = np.floor(n_inside + _ROUNDING), np.floor(n_outside + _ROUNDING)
    k = k_inside + np.minimum(k_outside, n_outside)
    p_values = hypergeom.sf(k_inside - 1, n_inside + n_outside, k, n_inside)
    return [min(float(p), 1.0) for p in p_values]


def _examples_beside(source: IntArray) -> float:
    """Return the mean size of the source of an example."""
    sizes = np.bincount(source)
    return float((sizes**2).sum() / sizes.sum())
