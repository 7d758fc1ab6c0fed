"""Information gain of cuts: exact gains of sorted features, and bounds of the gains of features that are not sorted.

With balanced class weights the gain of a cut is the Jensen-Shannon divergence between the failures and the successes,
as far as the cut distinguishes them: a function of the shares a of the failures and b of the successes below it. It is
convex, 0 for a = b, and for a >= b it rises with a and falls with b. So it is largest, among the cuts in a bin of
values, at one of the corners (most failures, least successes) and (least failures, most successes), which the counts of
the bins determine. With m = (a + b) / 2 and d = (a - b) / (a + b), each side adds m d^2 (1/2 + d^2/12 + d^4/30 + ...)
to the gain, in nats (Topsoe, IEEE Transactions on Information Theory, 2000).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled, compiled_strictly

TIE = np.float32(1e-7)  # scikit-learn's trees do not split between closer values
_LOW = 0xFFFFFFFF
_TILE = 16  # examples that are packed at once: their values stay in the processor's cache

# a power series in d^2, whose last coefficient stands for all that follow: never too small
_P0, _P1, _P2, _P3 = (np.float32(1 / (2 * v * (2 * v - 1) * math.log(2))) for v in (1, 2, 3, 4))
_P4 = np.float32(1) - _P0 - _P1 - _P2 - _P3
_ZERO, _HALF, _ONE, _TWO, _TINY = (np.float32(x) for x in (0.0, 0.5, 1.0, 2.0, 1e-20))
_ONE_BITS = np.int32(0x3F800000)


@compiled
def unpack(key: Any) -> Any:
    """Return the value of a key: its upper half is the bits of a float32, the lower 31 of negative numbers flipped."""
    bits = np.int32(key >> 32)
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)


@compiled
def pack(x: Any, features: Any, code: Any, keys: Any) -> None:
    """Write some features as rows of integers that sort like (value, code).

    Args:
        x: (n, D) float32, C-contiguous.
        features: (F,) int64, the features.
        code: (n,) int64 in [0, 2^32).
        keys: (F, n) int64, written: the value in the upper half, the code in the lower half.
    """
    n = len(x)
    for start in range(0, n, _TILE):  # the values of an example are neighbours, and so are the keys of a feature
        for j in range(len(features)):
            for i in range(start, min(start + _TILE, n)):
                bits = np.int64(np.float32(x[i, features[j]]).view(np.int32))
                keys[j, i] = ((bits ^ ((bits >> 31) & 0x7FFFFFFF)) << 32) | code[i]


@compiled
def x_log_x(x: float) -> float:
    """Return x * log2(x), and 0 for 0."""
    return x * math.log2(x) if x > 0 else 0.0


@compiled
def best_gains(
    keys: Any,
    member: Any,
    n_failed: Any,
    n_correct: Any,
    least: Any,
    wanted: Any,
    logs: Any,
    best: Any,
) -> None:
    """Find the highest gain of a cut of each feature, for some subsets of the examples.

    Args:
        keys: (F, n) int64 keys of :func:`pack`, each row sorted. The lowest bit of a code is 1 for a failure.
        member: (S, codes) int64, 1 where examples of a code belong to a subset, else 0.
        n_failed: (S,) int64, the number of failures in each subset, not 0.
        n_correct: (S,) int64, the number of successes in each subset, not 0.
        least: (S,) int64, the minimum number of examples on either side of a cut.
        wanted: (S, F) bool, the subsets for which each feature is evaluated.
        logs: (n + 1,) float64, k log2(k).
        best: (S, F) float64, written where wanted, if a cut exceeds what is there; the gains are at most 1.
    """
    features, n = keys.shape
    code = np.empty(n, np.int64)
    is_cut = np.empty(n, np.bool_)  # whether a cut below the example is allowed
    for j in range(features):
        limit = np.float32(0)
        for i in range(n):
            code[i] = keys[j, i] & _LOW
            value = unpack(keys[j, i])
            is_cut[i] = i > 0 and value > limit
            limit = value + TIE
        for s in range(len(least)):
            if not wanted[s, j]:
                continue
            of_failed, of_correct = n_failed[s], n_correct[s]
            weight = of_correct / of_failed  # both classes weigh of_correct: the parent has an entropy of one bit
            least_below, most_below = least[s], of_failed + of_correct - least[s]
            log_of_weight = of_correct * math.log2(weight)
            failures, size, most = 0, 0, best[s, j]
            for i in range(n):
                if is_cut[i] and least_below <= size <= most_below:
                    successes = size - failures
                    a, b = weight * failures, float(successes)
                    c, d = weight * (of_failed - failures), float(of_correct - successes)
                    # the gain is at most the square of the phi coefficient, which takes no logarithm
                    if (a - b) * (a - b) > most * ((a + b) * (c + d)) * (1 - 1e-9):
                        loss = x_log_x(a + b) + x_log_x(c + d) - log_of_weight
                        loss -= weight * (logs[failures] + logs[of_failed - failures])
                        loss -= logs[successes] + logs[of_correct - successes]
                        most = max(most, 1 - loss / (2 * of_correct))
                inside = member[s, code[i]]
                size += inside
                failures += inside & code[i]
            best[s, j] = most


@compiled
def bound_gains(
    x: Any,
    first: int,
    code: Any,
    n_failed: Any,
    n_correct: Any,
    least: Any,
    centre: Any,
    inverse: Any,
    shift: Any,
    middle: Any,
    place: Any,
    counts: Any,
    seeming: Any,
    bound: Any,
) -> None:
    """Bound the highest gain of a cut of each feature, on all examples and without each fold.

    Args:
        x: (n, D) float32, C-contiguous.
        first: The first of the F features that are evaluated.
        code: (n,) int64, 2 * fold + failed.
        n_failed: (S,) int64, the number of failures in each subset: all examples, those outside fold 0, and so on.
        n_correct: (S,) int64, the number of successes in each subset. A subset without either has a bound of 0.
        least: (S,) int64, the minimum number of examples on either side of a cut.
        centre: (F,) float32, see :func:`_place`.
        inverse: (2, F) float32, negative below the centre.
        shift: (F,) int32.
        middle: (F,) int32, at least 1.
        place: (tiles, n, tile) uint16, written; at least F places for an example.
        counts: (tile, codes, bins) unsigned integer, written.
        seeming: (F,) float32, written: about the gain of the best cut between two bins, on all examples.
        bound: (S, F) float32, written: no cut has a higher gain, but for rounding.
    """
    tiles, _, tile = place.shape
    _, n_codes, bins = counts.shape
    width = len(centre)
    _place(x, first, centre, inverse, shift, middle, bins, place)
    fewest = least.min()
    # counts below each bin, as floats: integers of another size are not vectorized together with floats
    below = np.zeros((n_codes, bins + 1), np.float32)
    failures, successes = np.zeros(bins + 1, np.float32), np.zeros(bins + 1, np.float32)
    all_failures, all_successes = np.zeros(bins + 1, np.float32), np.zeros(bins + 1, np.float32)
    gains = np.zeros(bins, np.float32)
    for t in range(tiles):
        start = t * tile
        if start >= width:
            break
        counts[:] = 0
        _count(place[t], code, min(tile, width - start), counts)
        for j in range(start, min(start + tile, width)):
            for k in range(n_codes):
                _sum_up(counts[j - start, k], below[k])
            all_failures[:] = _ZERO
            all_successes[:] = _ZERO
            for k in range(0, n_codes, 2):
                _add(below[k], all_successes)
                _add(below[k + 1], all_failures)
            # the bins that can hold an allowed cut, from the first to the last, in any subset
            low, high = 0, bins
            few = np.float32(fewest)
            many = all_failures[bins] + all_successes[bins] - few
            while low < high and all_failures[low + 1] + all_successes[low + 1] < few:
                low += 1
            while low < high and all_failures[high - 1] + all_successes[high - 1] > many:
                high -= 1
            f, s = failures[: high - low + 1], successes[: high - low + 1]
            for subset in range(len(least)):
                bound[subset, j] = _ZERO
                if n_failed[subset] == 0 or n_correct[subset] == 0:
                    continue
                s[:] = all_successes[low : high + 1]
                f[:] = all_failures[low : high + 1]
                if subset > 0:
                    _subtract(below[2 * subset - 2, low : high + 1], s)
                    _subtract(below[2 * subset - 1, low : high + 1], f)
                bound[subset, j] = _bound(
                    f, s, middle[j] - low, n_failed[subset], n_correct[subset], least[subset], gains
                )
            seeming[j] = _ZERO
            if n_failed[0] > 0 and n_correct[0] > 0:
                f, s = all_failures[low : high + 1], all_successes[low : high + 1]
                seeming[j] = _best_between(f, s, n_failed[0], n_correct[0], least[0], gains)


@compiled
def _sum_up(counts: Any, below: Any) -> None:
    """Set ``below`` (bins + 1,) to the sums of the counts (bins,) before each position."""
    total = np.int32(0)
    for b in range(len(counts)):
        total = np.int32(total + counts[b])
        below[b + 1] = np.float32(total)


@compiled
def _add(values: Any, to: Any) -> None:
    for b in range(len(values)):
        to[b] += values[b]


@compiled
def _subtract(values: Any, of: Any) -> None:
    for b in range(len(values)):
        of[b] -= values[b]


@compiled_strictly
def _place(
    x: Any,
    first: int,
    centre: Any,
    inverse: Any,
    shift: Any,
    middle: Any,
    bins: int,
    place: Any,
) -> None:
    """Write the bin of each example for the features from ``first`` on.

    The middle bin holds the examples at the centre exactly. Those at a distance r from it are binned by the bits of the
    float 1 + r |inverse|, without their lowest ``shift``: bins of equal width in each octave, twice as wide as in the
    octave before. The first and the last bin hold everything beyond. Every step rises with the value, so the bins do:
    each bin holds all examples between two values. This must not be reordered, nor rounded in one way here and another
    way there, so it is compiled strictly; and it is written without branches and without 64-bit integers, so that it is
    vectorized.
    """
    zero, one, top, tile = np.int32(0), np.int32(1), np.int32(bins - 1), place.shape[2]
    for i in range(len(x)):
        for t in range(len(place)):
            start = t * tile
            centres, shifts, middles = centre[start:], shift[start:], middle[start:]
            below, above = inverse[0, start:], inverse[1, start:]
            row, to = x[i, first + start : first + min(start + tile, len(centre))], place[t, i]
            for j in range(len(row)):
                away = np.float32(row[j] - centres[j])
                scaled = np.float32(_ONE + max(away * above[j], away * below[j]))
                steps = np.int32(np.int32(np.int32(scaled.view(np.int32) - _ONE_BITS) >> shifts[j]) + one)
                negative = np.int32(away.view(np.int32) >> np.int32(31))  # -1 or 0
                steps = np.int32(np.int32(steps ^ negative) - negative)
                b = np.int32(middles[j] + (steps if away != _ZERO else zero))
                b = b if b > zero else zero
                to[j] = np.uint16(b if b < top else top)


@compiled
def _count(place: Any, code: Any, width: int, counts: Any) -> None:
    """Count the examples of each code in each bin of some features, by their bins (n, tile)."""
    for i in range(len(place)):
        row, k = place[i, :width], np.uint64(code[i])
        for j in range(len(row)):
            counts[j, k, row[j]] += 1


@compiled
def _bound(failures: Any, successes: Any, middle: int, n_failed: int, n_correct: int, least: int, corner: Any) -> Any:
    """Return a bound of the gain of any cut.

    Args:
        failures: (B + 1,) float32, the number of failures below each of some bins and below their end.
        successes: (B + 1,) float32, the same of successes.
        middle: The bin without cuts inside, if it is one of these.
        n_failed: Number of failures.
        n_correct: Number of successes.
        least: Minimum number of examples on either side of a cut.
        corner: (B,) float32 at least, written.
    """
    f, s = failures, successes
    of_failed, of_correct = np.float32(1.0 / n_failed), np.float32(1.0 / n_correct)
    few, many = np.float32(least), np.float32(n_failed + n_correct - least)
    for b in range(len(f) - 1):
        # the corners, moved to where both sides have enough examples
        most_failures = _gain(_min(f[b + 1], many - s[b]) * of_failed, _max(s[b], few - f[b + 1]) * of_correct)
        most_successes = _gain(_max(f[b], few - s[b + 1]) * of_failed, _min(s[b + 1], many - f[b]) * of_correct)
        corner[b] = _max(most_failures, most_successes)
    if 0 <= middle < len(f) - 1:
        corner[middle] = _ZERO
    first, last = 0, len(f) - 1
    while first < last and f[first + 1] + s[first + 1] < few:
        first += 1
    while first < last and f[last - 1] + s[last - 1] > many:
        last -= 1
    highest = _ZERO
    for b in range(first, last):
        highest = corner[b] if corner[b] > highest else highest
    return highest


@compiled
def _best_between(failures: Any, successes: Any, n_failed: int, n_correct: int, least: int, edge: Any) -> Any:
    """Return about the best gain of the allowed cuts between two bins, by the arguments of :func:`_bound`."""
    f, s = failures, successes
    of_failed, of_correct = np.float32(1.0 / n_failed), np.float32(1.0 / n_correct)
    few, many = np.float32(least), np.float32(n_failed + n_correct - least)
    for b in range(len(f) - 1):
        edge[b] = _gain(f[b + 1] * of_failed, s[b + 1] * of_correct)
    highest = _ZERO
    for b in range(len(f) - 1):
        if few <= f[b + 1] + s[b + 1] <= many and edge[b] > highest:
            highest = edge[b]
    return highest


@compiled
def _min(a: Any, b: Any) -> Any:
    return a if a < b else b


@compiled
def _max(a: Any, b: Any) -> Any:
    return a if a > b else b


@compiled
def _gain(a: Any, b: Any) -> Any:
    """Return the gain by the shares of failures and successes below a cut, or a little more."""
    apart = a - b
    below = _max(a + b, _TINY)
    above = _max(_TWO - (a + b), _TINY)
    x, y = apart / below, apart / above
    return _HALF * apart * (x * _series(x * x) + y * _series(y * y))


@compiled
def _series(q: Any) -> Any:
    return _P0 + q * (_P1 + q * (_P2 + q * (_P3 + q * _P4)))
