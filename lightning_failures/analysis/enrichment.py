"""Enrichment of known attributes: which values are over-represented among failures and among flagged examples?

Source: the experiments on data with known attributes in Jain et al., Distilling Model Failures as Directions in Latent
Space, ICLR 2023. They compare how often a value occurs among all examples, among the flagged ones, and among the same
number of examples of least confidence. Nothing is fitted to the attributes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array, as_mask
from lightning_failures.core.types import IntArray
from lightning_failures.data.records import ValueReport
from lightning_failures.errors import DataError
from lightning_failures.stats.intervals import share_intervals

MISSING = "missing"
MOST_VALUES = 20
"""Maximum number of values of an attribute: the most frequent ones; the others are pooled."""


@dataclass(frozen=True)
class Attribute:
    """One attribute of N examples.

    Attributes:
        codes: (N,) int64, indices into ``values``.
        values: The value of each code, in natural order; the pooled and missing values last.
    """

    codes: IntArray
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Attribute:
        return Attribute(self.codes[rows], self.values)


def read_attribute(values: Any, name: str, *, most_values: int = MOST_VALUES) -> Attribute:
    """Encode the values of one attribute as integers.

    Args:
        values: (N,) integers, strings or booleans: a tensor, an array or a sequence. None, NaN and pandas' NA become
            the value "missing". Fractions are allowed if there are at most ``most_values`` distinct ones.
        name: Name of the attribute in messages.
        most_values: Maximum number of values: the most frequent ones; the others become one, "other (k values)".

    Raises:
        DataError: The shape is not (N,), the values are of another kind, or there are too many distinct fractions.

    >>> read_attribute(["night", None, "day", "night"], "time")
    Attribute(codes=array([1, 2, 0, 1]), values=('day', 'night', 'missing'))
    """
    if isinstance(values, Attribute):
        return values
    if isinstance(values, Sequence) and not isinstance(values, str):  # NumPy would convert None and NaN to strings
        listed = [value.item() if isinstance(value, Tensor) and value.ndim == 0 else value for value in values]
        values = np.asarray(listed, dtype=object)
    array = as_array(values)
    if array.ndim != 1:
        raise DataError(f"metadata[{name!r}] must have shape (N,), one value per example, got {array.shape}")
    present = np.array([not _is_missing(value) for value in array.tolist()], dtype=np.bool_)
    texts, code = _encode(_homogeneous(array[present], name), name, most_values)

    # keep the most frequent values and pool the others
    counts = np.bincount(code, minlength=len(texts))
    kept = np.sort(np.argsort(-counts, kind="stable")[:most_values])
    new_code = np.full(len(texts), len(kept))
    new_code[kept] = np.arange(len(kept))
    names = [texts[k] for k in kept]
    if pooled := len(texts) - len(kept):
        names.append(f"other ({pooled} values)")
    codes = np.full(len(array), len(names), dtype=np.int64)
    codes[present] = new_code[code]

    # missing values come last, unless "missing" is itself a value
    if not present.all():
        if MISSING in names:
            codes[~present] = names.index(MISSING)
        else:
            names.append(MISSING)
    return Attribute(codes, tuple(names))


def enrichment(
    attributes: Mapping[str, Attribute],
    failed: Any,
    confidence: Any,
    flagged: Any = None,
    *,
    sources: NDArray[Any] | None = None,
) -> tuple[ValueReport, ...]:
    """Count each value among all examples, failures, flagged examples, and as many examples of least confidence.

    Args:
        attributes: Name -> (n,) values of the examples, usually those of one class.
        failed: (n,) bool.
        confidence: (n,) predicted probability of the true class; among ties the first row counts as less confident.
            None: unknown.
        flagged: (n,) bool, the failures that a direction predicts (cross-fitted decision value < 0). None: unknown.
        sources: (n,) source of each example. Examples of one source are not independent: the interval of a share is
            Wilson's at the effective number of examples, n over the design effect. None: every example is its own
            source.

    Returns:
        One record for each value that occurs, in the order of ``attributes`` and of their values.

    >>> size = Attribute(np.array([0, 0, 0, 1, 1, 1]), ("large", "small"))
    >>> table = enrichment({"size": size}, np.arange(6) > 3, np.ones(6), np.arange(6) > 2)
    >>> [(row.value, row.share, row.share_of_failures, row.share_of_flagged) for row in table]
    [('large', 0.5, 0.0, 0.0), ('small', 0.5, 1.0, 1.0)]
    """
    wrong = as_mask(failed, "failed", len(failed))
    n = len(wrong)
    has_flags = flagged is not None
    is_flagged = as_mask(flagged, "flagged", n) if has_flags else np.zeros(n, dtype=np.bool_)
    source_of_flagged = None if sources is None else np.unique(sources[is_flagged], return_inverse=True)[1]
    has_least = has_flags and confidence is not None
    least_confident = np.argsort(as_array(confidence), kind="stable")[: is_flagged.sum()] if has_least else slice(0)
    rows = []
    for name, attribute in attributes.items():
        if len(attribute) != n:
            raise DataError(f"metadata[{name!r}] has {len(attribute)} values for {n} examples")
        code, size = attribute.codes, len(attribute.values)
        subsets = (slice(None), wrong, is_flagged, least_confident)
        histograms = [np.bincount(code[subset], minlength=size) for subset in subsets]
        totals = [int(histogram.sum()) for histogram in histograms]
        intervals = share_intervals(code[is_flagged], size, source_of_flagged)
        for value in np.flatnonzero(histograms[0]).tolist():
            counts = [int(histogram[value]) for histogram in histograms]
            shares = [count / total if total else None for count, total in zip(counts, totals, strict=True)]
            rows.append(
                ValueReport(
                    attribute=name,
                    value=attribute.values[value],
                    examples=counts[0],
                    failures=counts[1],
                    flagged=counts[2] if has_flags else None,
                    least_confident=counts[3] if has_least else None,
                    share=shares[0],
                    share_of_failures=shares[1],
                    share_of_flagged=shares[2],
                    share_of_flagged_interval=intervals[value] if is_flagged.any() else None,
                    share_of_least_confident=shares[3],
                )
            )
    return tuple(rows)


def _is_missing(value: Any) -> bool:
    """Return whether a value is None, NaN, or a missing value of pandas."""
    if isinstance(value, Real):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # pandas may not be installed


def _homogeneous(known: NDArray[Any], name: str) -> NDArray[Any]:
    """Return objects as an array of numbers, or of strings if there is a string among them."""
    if known.dtype.kind == "O":
        kinds = {type(value) for value in known.tolist()}
        if other := [kind.__name__ for kind in kinds if not issubclass(kind, str | Real | np.bool_)]:
            raise DataError(f"metadata[{name!r}] must hold integers, strings or booleans, got a {other[0]}")
        if any(issubclass(kind, str) for kind in kinds):
            return np.array([str(value) for value in known.tolist()])
        return np.array(known.tolist() or [0])[: len(known)]  # an empty list would become floats
    if known.dtype.kind not in "biufU":
        raise DataError(f"metadata[{name!r}] must hold integers, strings or booleans, got dtype {known.dtype}")
    return known


def _encode(known: NDArray[Any], name: str, most_values: int) -> tuple[list[str], IntArray]:
    """Return the distinct values as text, in natural order, and (n,) the index of the value of each example."""
    if known.dtype.kind == "U":
        words = known.tolist()  # a dictionary is faster than sorting all strings with np.unique
        distinct = sorted(set(words))
        index_of = {word: k for k, word in enumerate(distinct)}
        return distinct, np.fromiter((index_of[word] for word in words), dtype=np.int64, count=len(words))
    if known.dtype.kind == "f" and np.isfinite(known).all() and (known == np.floor(known)).all():
        known = known.astype(np.int64)
    values, code = np.unique(known, return_inverse=True)
    if known.dtype.kind == "f" and len(values) > most_values:
        raise DataError(
            f"metadata[{name!r}] has {len(values)} distinct fractions, so few examples share a value. Bin them first,"
            " for example with numpy.digitize or pandas.qcut."
        )
    return [str(value) for value in values], code
