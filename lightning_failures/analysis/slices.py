"""Slices by attribute: how often do examples with one value of a known attribute fail, compared with the others?

Many slices are looked at, and small ones have extreme error rates by chance. So slices are sorted by the lower end of
the interval of the gap, not by the gap itself, and each has a p-value that is corrected for the number of slices.

Over all classes, a value that is frequent in a hard class looks bad without being the reason. So examples with the
value are compared with the others of their own class: the *adjusted* gap is the mean of the gaps within classes,
weighted by the examples with the value. This is direct standardisation to the mix of classes inside of the slice.

Sources: Miettinen, Standardization of risk ratios, 1972; Mantel and Haenszel, Statistical aspects of the analysis of
data from retrospective studies of disease, 1959.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_failures.analysis.enrichment import Attribute
from lightning_failures.core.arrays import as_mask
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.report import SliceReport
from lightning_failures.stats.intervals import benjamini_hochberg, difference_interval, wilson_interval
from lightning_failures.stats.rates import Rate, correlation_within, exact_p_values, rate_of

MOST_SLICES = 20
"""Maximum number of slices of a class, and of all classes together, that a report keeps."""


def slices_of(
    attributes: Mapping[str, Attribute],
    failed: Any,
    *,
    class_name: str | None = None,
    sources: NDArray[Any] | None = None,
    labels: IntArray | None = None,
) -> tuple[SliceReport, ...]:
    """Compare the error rate inside and outside of each value of each attribute.

    Args:
        attributes: Name -> (n,) values of the examples.
        failed: (n,) bool.
        class_name: Class of the examples; None for all classes together.
        sources: (n,) source of each example. Examples of one source are not independent: intervals and p-values are
            those of the effective number of examples, n over the design effect. None: every example is its own source.
        labels: (n,) int >= 0, the classes of the examples. None: one class.

    Returns:
        One record for each value that some examples have and others do not, in the order of ``attributes`` and of
        their values; none where all examples failed, or no one. The p-value is that of Fisher's exact test against
        "not more often", of several classes that of the Cochran-Mantel-Haenszel test with continuity correction, and no
        slice is significant yet: see :func:`leading_slices`.

    >>> tint = Attribute(np.array([0] * 10 + [1] * 20), ("cyan", "yellow"))
    >>> cyan, yellow = slices_of({"tint": tint}, np.arange(30) < 8)
    >>> cyan.error_rate, cyan.error_rate_outside, round(cyan.p_value, 7), yellow.p_value
    (0.8, 0.0, 7.7e-06, 1.0)
    """
    wrong = as_mask(failed, "failed", len(failed))
    if wrong.all() or not wrong.any():
        return ()
    classes = np.zeros(len(wrong), dtype=np.int64) if labels is None else labels
    correlation = 0.0 if sources is None else correlation_within(wrong, sources)
    found: list[SliceReport] = []
    pairs: list[tuple[Rate, Rate]] = []
    adjusted: list[_AdjustedGap] = []
    for name, attribute in attributes.items():
        sizes = np.bincount(attribute.codes, minlength=len(attribute.values))
        for value in np.flatnonzero((sizes > 0) & (sizes < len(wrong))).tolist():
            mask = attribute.codes == value
            inside, outside = (rate_of(wrong, rows, sources, correlation) for rows in (mask, ~mask))
            ends = (inside.interval, outside.interval)
            pairs.append((inside, outside))
            adjusted.append(_adjust(wrong, mask, classes, inside, outside))
            found.append(
                SliceReport(
                    attribute=name,
                    value=attribute.values[value],
                    class_name=class_name,
                    examples=inside.examples,
                    failures=inside.failures,
                    error_rate=inside.rate,
                    interval=ends[0],
                    error_rate_outside=outside.rate,
                    gap=inside.rate - outside.rate,
                    gap_interval=difference_interval(inside.rate, ends[0], outside.rate, ends[1]),
                    adjusted_gap=adjusted[-1].gap,
                    adjusted_gap_interval=adjusted[-1].interval,
                )
            )
    one_class = len(np.unique(classes)) == 1
    p_values = exact_p_values(pairs) if one_class else [one.p_value for one in adjusted]
    return tuple(replace(row, p_value=p) for row, p in zip(found, p_values, strict=True))


def leading_slices(sets: Iterable[Sequence[SliceReport]], limit: int = MOST_SLICES) -> list[tuple[SliceReport, ...]]:
    """Test the slices of all sets together, and return the leading ones of each.

    Args:
        sets: The slices of each class.
        limit: Maximum number of slices of a set.

    Returns:
        The slices of each set by the lower end of the interval of their adjusted gap, and which of them are significant
        by Benjamini-Hochberg over the slices of all sets, also of those that are left out.
    """
    sets = list(sets)
    significant = iter(benjamini_hochberg([row.p_value for rows in sets for row in rows]).tolist())
    tested = [[replace(row, significant=next(significant)) for row in rows] for rows in sets]
    return [tuple(sorted(rows, key=lower_end, reverse=True)[:limit]) for rows in tested]


def lower_end(row: SliceReport) -> float:
    """Return the lower end of the interval of the adjusted gap: how much more often the slice fails at least."""
    ends = row.gap_interval if row.adjusted_gap_interval is None else row.adjusted_gap_interval
    return -1.0 if ends is None else ends[0]


class _AdjustedGap(NamedTuple):
    """The gap within classes, and the p-value of the test that there is none."""

    gap: float | None
    interval: tuple[float, float]
    p_value: float


def _adjust(wrong: BoolArray, mask: BoolArray, classes: IntArray, inside: Rate, outside: Rate) -> _AdjustedGap:
    """Compare the examples of a slice with the others of their classes; classes without others are left out.

    Args:
        wrong: (n,) bool.
        mask: (n,) bool, the examples of the slice.
        classes: (n,) int.
        inside: The rate of the examples of the slice.
        outside: The rate of the others.
    """
    size = int(classes.max()) + 1
    counts = [np.bincount(classes[rows], minlength=size) for rows in (mask, ~mask, mask & wrong, ~mask & wrong)]
    both = (counts[0] > 0) & (counts[1] > 0)
    if not both.any():
        return _AdjustedGap(None, (-1.0, 1.0), 1.0)
    n_inside, n_outside, k_inside, k_outside = (count[both].astype(np.float64) for count in counts)
    weight = n_inside / n_inside.sum()
    rate, expected_rate = float(k_inside.sum() / n_inside.sum()), min(float(weight @ (k_outside / n_outside)), 1.0)
    # examples of one source are not independent, and weights leave fewer effective examples outside
    effects = [one.examples / one.effective for one in (inside, outside)]
    effective = n_inside.sum() / effects[0], 1 / (weight**2 / n_outside).sum() / effects[1]
    ends = [wilson_interval(p * n, n) for p, n in zip((rate, expected_rate), map(float, effective), strict=True)]
    return _AdjustedGap(
        rate - expected_rate,
        difference_interval(rate, ends[0], expected_rate, ends[1]),
        _stratified_p_value(n_inside, n_outside, k_inside, k_outside, max(effects)),
    )


def _stratified_p_value(
    n_inside: FloatArray, n_outside: FloatArray, k_inside: FloatArray, k_outside: FloatArray, design_effect: float
) -> float:
    """Return the one-sided p-value of the Cochran-Mantel-Haenszel test, with continuity correction.

    Args:
        n_inside: (K,) examples of the slice in each class.
        n_outside: (K,) other examples.
        k_inside: (K,) failures among the examples of the slice.
        k_outside: (K,) failures among the others.
        design_effect: Examples per independent example.
    """
    n, k = n_inside + n_outside, k_inside + k_outside
    excess = float((k_inside - n_inside * k / n).sum())
    variance = float((n_inside * n_outside * k * (n - k) / (n**2 * (n - 1))).sum())  # both sides have examples: n > 1
    if variance <= 0:
        return 1.0
    z = (excess - 0.5 * design_effect) / math.sqrt(variance * design_effect)
    return 0.5 * math.erfc(z / math.sqrt(2))
