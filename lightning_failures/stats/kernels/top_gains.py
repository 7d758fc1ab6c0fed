"""The features with the highest information gains, by bounds of the gains in blocks of cuts.

With balanced class weights the gain of a cut is the Jensen-Shannon divergence between the failures and the successes,
as far as the cut distinguishes them: a function of the shares a of the failures and b of the successes below it. It is
convex, 0 for a = b, and for a >= b it rises with a and falls with b. So it is largest, among the cuts in a block of
neighbouring examples, at one of the corners (most failures, least successes) and (least failures, most successes),
which the counts at the ends of the block determine. With m = (a + b) / 2 and d = (a - b) / (a + b), each side adds
m d^2 (1/2 + d^2/12 + d^4/30 + ...) to the gain, in nats (Topsoe, IEEE Transactions on Information Theory, 2000).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled
from lightning_failures.stats.kernels.gain import highest_gain, read_keys

_MARGIN = np.float32(1.001)  # for the rounding of bounds in single precision
_LANES = 16  # of a vector: numbers of blocks are rounded up

# a power series in d^2, whose last coefficient stands for all that follow: never too small
_P0, _P1, _P2, _P3 = (np.float32(1 / (2 * v * (2 * v - 1) * math.log(2))) for v in (1, 2, 3, 4))
_P4 = np.float32(1) - _P0 - _P1 - _P2 - _P3
_ZERO, _HALF, _ONE, _TWO, _TINY = (np.float32(x) for x in (0.0, 0.5, 1.0, 2.0, 1e-20))


@compiled
def raise_best(
    keys: Any,
    first: int,
    ends: Any,
    member: Any,
    n_failed: Any,
    n_correct: Any,
    least: Any,
    logs: Any,
    gains: Any,
    best: Any,
) -> int:
    """Put the features with higher gains than the best so far in their place; return how many examples were passed.

    Args:
        keys: (F, n) int64 or uint32, each row sorted, see ``gain``; codes are 2 * fold + failed.
        first: Index of the first of these features.
        ends: (E,) int64, ascending: positions at which blocks of cuts end. No cut lies before the first end, or behind
            the last one.
        member: (S, codes) int64, 1 where examples of a code belong to a subset: all, and all outside of each fold.
        n_failed: (S,) int64, the number of failures in each subset.
        n_correct: (S,) int64, the number of successes in each subset. One without either is left alone.
        least: (S,) int64, the minimum number of examples on either side of a cut.
        logs: (n + 1,) float64, k log2(k).
        gains: (S, top) float64, written: the highest gains, descending; -1 where there are fewer features.
        best: (S, top) int64, written: the features that have them; of those with equal gains the first.
    """
    n, n_codes = keys.shape[1], member.shape[1]
    room = -(-(2 * len(ends) + 2) // _LANES) * _LANES
    starts, counts = np.empty(room + 1, np.int64), np.zeros(n_codes, np.int64)
    below = np.zeros((n_codes, room + 1), np.float32)
    all_failures, all_successes = np.zeros(room + 1, np.float32), np.zeros(room + 1, np.float32)
    failures, successes = np.zeros(room + 1, np.float32), np.zeros(room + 1, np.float32)
    has_cuts, corner = np.zeros(room, np.float32), np.zeros(room, np.float32)
    code, is_cut = np.empty(n, np.int64), np.empty(n, np.bool_)
    passed = 0
    for j in range(len(keys)):
        row = keys[j]
        blocks = _count(row, ends, counts, starts, below, has_cuts)
        padded = -(-blocks // _LANES) * _LANES
        _sum_up(below, padded + 1, all_failures, all_successes)
        for s in range(len(least)):
            of = n_failed[s], n_correct[s], least[s]
            if of[0] == 0 or of[1] == 0:
                continue
            f, g = all_failures, all_successes
            if s > 0:
                f, g = failures, successes
                _leave_out(below, s - 1, padded + 1, all_failures, all_successes, f, g)
            lowest = gains[s, -1]
            if _bound(f, g, has_cuts, padded, of, corner) <= lowest:
                continue
            gain = max(lowest, 0.0)
            for b in range(blocks):  # only where the bound leaves a higher gain possible
                if corner[b] > gain:
                    start, stop = starts[b], min(starts[b + 1] + 1, n)
                    read_keys(row, start, stop, code, is_cut)
                    part, cuts = code[start:stop], is_cut[start:stop]
                    gain = highest_gain(part, cuts, int(f[b]), int(f[b] + g[b]), member[s], of, logs, gain)
                    passed += stop - start
            if gain > lowest:
                _insert(gain, first + j, gains[s], best[s])
    return passed


@compiled
def _count(row: Any, ends: Any, counts: Any, starts: Any, below: Any, has_cuts: Any) -> int:
    """Divide a sorted feature into blocks and return their number; up to a multiple of 16 empty ones follow.

    A block holds the cuts from its start to its end, both included. Equal values that reach across an end are a block
    of their own, without cuts; those before and after it may be empty, with one cut.

    Args:
        row: (n,) keys.
        ends: (E,) int64, see :func:`raise_best`.
        counts: (codes,) int64, written.
        starts: (blocks + 1,) int64, written: the position of the first example of each block, and behind the last one.
        below: (codes, blocks + 1) float32, written: the number of examples of each code below each block.
        has_cuts: (blocks,) float32, written: 1 or 0.
    """
    bits = 16 if row.itemsize == 4 else 32
    mask = 0xFFFF if row.itemsize == 4 else 0xFFFFFFFF
    n = len(row)
    counts[:] = 0
    start, block = 0, -1  # block -1 holds the examples below the first end
    for e in range(len(ends) + 1):
        end = ends[e] if e < len(ends) else n
        if end < start:  # among equal values
            continue
        left, right = end, end
        if 0 < end < n and (row[end] >> bits) == (row[end - 1] >> bits):
            value = row[end] >> bits
            while left > start and (row[left - 1] >> bits) == value:
                left -= 1
            while right < n and (row[right] >> bits) == value:
                right += 1
        # examples up to the equal values, then these
        for part in range(2):
            stop = left if part == 0 else right
            if part == 1 and left == right:
                continue
            for i in range(start, stop):
                counts[np.int64(row[i]) & mask] += 1
            if block >= 0:
                has_cuts[block] = _ONE if part == 0 and e < len(ends) else _ZERO
            block += 1
            starts[block] = stop
            for k in range(len(counts)):
                below[k, block] = np.float32(counts[k])
            start = stop
    for b in range(block, -(-block // _LANES) * _LANES):
        has_cuts[b] = _ZERO
        for k in range(len(counts)):
            below[k, b + 1] = below[k, block]
    return block


@compiled
def _sum_up(below: Any, size: int, failures: Any, successes: Any) -> None:
    """Add up the counts of all folds."""
    for b in range(size):
        successes[b] = below[0, b]
        failures[b] = below[1, b]
    for k in range(2, len(below), 2):
        for b in range(size):
            successes[b] += below[k, b]
            failures[b] += below[k + 1, b]


@compiled
def _leave_out(
    below: Any, fold: int, size: int, all_failures: Any, all_successes: Any, failures: Any, successes: Any
) -> None:
    """Write the counts without a fold."""
    for b in range(size):
        successes[b] = all_successes[b] - below[2 * fold, b]
        failures[b] = all_failures[b] - below[2 * fold + 1, b]


@compiled
def _bound(failures: Any, successes: Any, has_cuts: Any, blocks: int, of: tuple[int, int, int], corner: Any) -> Any:
    """Return a bound of the gain of any cut, and write that of the cuts in each block.

    Args:
        failures: (blocks + 1,) float32, the number of failures below each block and below the end of the last one.
        successes: (blocks + 1,) float32, the same of successes.
        has_cuts: (blocks,) float32, 0 for a block without cuts, else 1.
        blocks: Number of blocks.
        of: Number of failures, of successes, and least number of examples on either side of a cut.
        corner: (blocks,) float32, written.
    """
    f, s = failures, successes
    n_failed, n_correct, least = of
    of_failed, of_correct = np.float32(1.0 / n_failed), np.float32(1.0 / n_correct)
    few, many = np.float32(least), np.float32(n_failed + n_correct - least)
    highest = _ZERO
    for b in range(blocks):
        # the corners, moved to where both sides have enough examples
        most_failed = _min(f[b + 1], many - s[b]) * of_failed
        least_correct = _max(s[b], few - f[b + 1]) * of_correct
        least_failed = _max(f[b], few - s[b + 1]) * of_failed
        most_correct = _min(s[b + 1], many - f[b]) * of_correct
        # a cut as far from the diagonal as either, and as near to an end of the feature: both corners in one go
        apart = _max(most_failed - least_correct, most_correct - least_failed)
        one, other = most_failed + least_correct, least_failed + most_correct
        gain = _gain(apart, _max(_min(one, other), _TINY), _max(_TWO - _max(one, other), _TINY))
        allowed = has_cuts[b] if f[b + 1] + s[b + 1] >= few and f[b] + s[b] <= many else _ZERO
        corner[b] = _MARGIN * allowed * gain
    for b in range(blocks):
        highest = _max(highest, corner[b])
    return highest


@compiled
def _insert(gain: float, feature: int, gains: Any, best: Any) -> None:
    """Insert a feature behind those with an equal or a higher gain; the last one leaves."""
    at = len(gains) - 1
    while at > 0 and gains[at - 1] < gain:
        gains[at], best[at] = gains[at - 1], best[at - 1]
        at -= 1
    gains[at], best[at] = gain, feature


@compiled
def _min(a: Any, b: Any) -> Any:
    return a if a < b else b


@compiled
def _max(a: Any, b: Any) -> Any:
    return a if a > b else b


@compiled
def _gain(apart: Any, below: Any, above: Any) -> Any:
    """Return the gain, or a little more, by the difference of the shares below a cut and their sums on either side."""
    of_both = apart / (below * above)  # one division
    x, y = of_both * above, of_both * below
    return _HALF * apart * (x * _series(x * x) + y * _series(y * y))


@compiled
def _series(q: Any) -> Any:
    return _P0 + q * (_P1 + q * (_P2 + q * (_P3 + q * _P4)))
