"""Which values of known attributes are over-represented among the failures, and among what the directions flag.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, its experiments on
data with known attributes: how often a value occurs among all examples, among the flagged ones, and among as many that
the model is least confident of. Nothing is fitted to the attributes.
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
from lightning_failures.data.report import ValueReport
from lightning_failures.errors import DataError
from lightning_failures.stats.intervals import wilson_interval

MISSING = "missing"
MOST_VALUES = 20
"""An attribute keeps so many values, the most frequent; the others are counted together."""

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Attribute:
    """One attribute of N examples.

    Attributes:
        codes: (N,) int64, indices into ``values``.
        values: What the codes stand for, in natural order; pooled and missing ones last.
    """

    codes: Ints
    values: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: Any) -> Attribute:
        return Attribute(self.codes[rows], self.values)


def read_attribute(values: Any, name: str, *, most_values: int = MOST_VALUES) -> Attribute:
    """Number the values of one attribute.

    Args:
        values: (N,) integers, strings or booleans: a tensor, an array or a sequence. None, NaN and pandas' NA become
            the value "missing". Fractions are allowed if there are at most ``most_values`` different ones.
        name: For messages.
        most_values: Keep so many values, the most frequent; the others become one, "other (k values)".

    Raises:
        DataError: Another shape, values of another kind, or too many different fractions.

    >>> read_attribute(["night", None, "day", "night"], "time")
    Attribute(codes=array([1, 2, 0, 1]), values=('day', 'night', 'missing'))
    """
    if isinstance(values, Attribute):
        return values
    if isinstance(values, Sequence) and not isinstance(values, str):  # NumPy would turn None and NaN into words
        listed = [value.item() if isinstance(value, Tensor) and value.ndim == 0 else value for value in values]
        values = np.asarray(listed, dtype=object)
    array = as_array(values)
    if array.ndim != 1:
        raise DataError(f"metadata[{name!r}] must have shape (N,), one value an example, got {array.shape}")
    present = np.array([not _is_missing(value) for value in array.tolist()], dtype=np.bool_)
    texts, code = _number(_plain(array[present], name), name, most_values)

    counts = np.bincount(code, minlength=len(texts))
    kept = np.sort(np.argsort(-counts, kind="stable")[:most_values])
    place = np.full(len(texts), len(kept))
    place[kept] = np.arange(len(kept))
    names = [texts[k] for k in kept]
    if pooled := len(texts) - len(kept):
        names.append(f"other ({pooled} values)")
    codes = np.full(len(array), len(names), dtype=np.int64)
    codes[present] = place[code]
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
    """Count each value among all examples, the failures, the flagged, and as many of least confidence.

    Args:
        attributes: Name -> (n,) values of the examples, usually those of one class.
        failed: (n,) bool.
        confidence: (n,) predicted probability of the true class; ties go to the row that comes first.
        flagged: (n,) bool, the failures that a direction predicts (cross-fitted decision value < 0). None: not known.
        sources: (n,) source of each example. Examples of one source are not independent: the interval of a share is
            Wilson's at the effective number of examples, n over the design effect. None: all are.

    Returns:
        One record for each value that occurs, in the order of ``attributes`` and of their values.

    >>> size = Attribute(np.array([0, 0, 0, 1, 1, 1]), ("large", "small"))
    >>> table = enrichment({"size": size}, np.arange(6) > 3, np.ones(6), np.arange(6) > 2)
    >>> [(row.value, row.share, row.share_of_failures, row.share_of_flagged) for row in table]
    [('large', 0.5, 0.0, 0.0), ('small', 0.5, 1.0, 1.0)]
    """
    wrong = as_mask(failed, "failed", len(failed))
    n = len(wrong)
    judged = flagged is not None
    picked = as_mask(flagged, "flagged", n) if judged else np.zeros(n, dtype=np.bool_)
    member = None if sources is None else np.unique(sources[picked], return_inverse=True)[1]
    doubtful = np.argsort(as_array(confidence), kind="stable")[: picked.sum()]
    rows = []
    for name, attribute in attributes.items():
        if len(attribute) != n:
            raise DataError(f"metadata[{name!r}] has {len(attribute)} values for {n} examples")
        code, size = attribute.codes, len(attribute.values)
        parts = [np.bincount(code[part], minlength=size) for part in (slice(None), wrong, picked, doubtful)]
        totals = [int(part.sum()) for part in parts]
        intervals = _intervals(code[picked], size, member)
        for value in np.flatnonzero(parts[0]).tolist():
            counts = [int(part[value]) for part in parts]
            shares = [count / total if total else None for count, total in zip(counts, totals, strict=True)]
            rows.append(
                ValueReport(
                    attribute=name,
                    value=attribute.values[value],
                    examples=counts[0],
                    failures=counts[1],
                    flagged=counts[2] if judged else None,
                    least_confident=counts[3] if judged else None,
                    share=shares[0],
                    share_of_failures=shares[1],
                    share_of_flagged=shares[2],
                    share_of_flagged_interval=intervals[value] if picked.any() else None,
                    share_of_least_confident=shares[3],
                )
            )
    return tuple(rows)


def _is_missing(value: Any) -> bool:
    if isinstance(value, Real):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # of pandas, which need not be installed


def _plain(known: NDArray[Any], name: str) -> NDArray[Any]:
    """Objects as an array of numbers, or of strings where there is any."""
    if known.dtype.kind == "O":
        kinds = {type(value) for value in known.tolist()}
        words = any(issubclass(kind, str) for kind in kinds)
        if other := [kind.__name__ for kind in kinds if not issubclass(kind, str | Real | np.bool_)]:
            raise DataError(f"metadata[{name!r}] must hold integers, strings or booleans, got a {other[0]}")
        return (
            np.array([str(value) for value in known.tolist()])
            if words
            else np.array(known.tolist() or [0])[: len(known)]
        )
    if known.dtype.kind not in "biufU":
        raise DataError(f"metadata[{name!r}] must hold integers, strings or booleans, got dtype {known.dtype}")
    return known


def _number(known: NDArray[Any], name: str, most_values: int) -> tuple[list[str], Ints]:
    """Distinct values as text, in natural order, and which of them each example has."""
    if known.dtype.kind == "U":
        words = known.tolist()  # by a table: sorting words is slow
        distinct = sorted(set(words))
        place = {word: k for k, word in enumerate(distinct)}
        return distinct, np.fromiter((place[word] for word in words), dtype=np.int64, count=len(words))
    if known.dtype.kind == "f" and np.isfinite(known).all() and (known == np.floor(known)).all():
        known = known.astype(np.int64)
    values, code = np.unique(known, return_inverse=True)
    if known.dtype.kind == "f" and len(values) > most_values:
        raise DataError(
            f"metadata[{name!r}] has {len(values)} different fractions, so hardly two examples share one. Bin them"
            " first, for example with numpy.digitize or pandas.qcut."
        )
    return [str(value) for value in values], code


def _intervals(code: Ints, size: int, member: Ints | None) -> list[tuple[float, float]]:
    """95 % interval of the share of each of ``size`` values; ``member`` numbers the sources."""
    n = len(code)
    share = np.bincount(code, minlength=size) / max(n, 1)
    effective = np.full(size, float(n))
    if member is not None and n:
        count = int(member.max()) + 1
        table = np.bincount(member * size + code, minlength=count * size).reshape(count, size)
        apart = table - table.sum(axis=1, keepdims=True) * share  # of a source, from what its size lets expect
        spread = (apart**2).sum(axis=0) / n**2 * count / max(count - 1, 1)
        single = share * (1 - share)
        # where all have a value or none has, or where there is one source, the sources are what counts
        usual = (single > 0) & (spread > 0) & (count > 1)
        effective = np.where(usual, np.minimum(n, single / np.where(usual, spread, 1)), count)
    return [wilson_interval(p * m, m) for p, m in zip(share.tolist(), effective.tolist(), strict=True)]
