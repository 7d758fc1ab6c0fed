"""Sequential minimal optimization of the L1-hinge SVM on a Gram matrix, with warm starts along C.

The dual in b_i = y_i alpha_i: maximise y'b - b'Kb / 2 with sum b = 0 and lo <= b <= hi, where [lo, hi] is [0, C w_i]
for y_i = +1 and [-C w_i, 0] for y_i = -1. With the gradient g = y - K b the solution is reached when no g of an example
that can rise (b < hi) exceeds the g of an example that can fall (b > lo); the bias lies between them.

Sources: Platt, 1998; the second example of a pair is selected by its gain as in Fan, Chen and Lin, JMLR 2005,
section 2, with 1 / (1 - k) replaced by 1 + k + k^2. Steps are 1.5 times those to the optimum of the pair, as in
successive over-relaxation: every step still ascends, and a path takes half as many. Problems that these steps do not
solve in some rounds are solved by plain steps in double precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled

_RELAXATION = 1.5
_MIN_CURVATURE = 2e-6  # share of the largest squared length that single precision can resolve
_QUICK_ROUNDS = 20
_MAX_ROUNDS = 500
_MIN_PAIR_CURVATURE = 1e-9  # curvature of a pair of identical examples, in double precision
_STEPS_PER_EXAMPLE = 4  # steps per round and example: the rounding error of g adds up
_ACCEPTABLE = 1e-3  # where single precision cannot reach the tolerance; the default tolerance of scikit-learn
_HUGE = 1e300  # stands for infinity, which the fast-math flags exclude
_NEVER = np.float32(-1e30)
_LEAST = np.int32(-(2**31) + 1)
_MAGNITUDE = np.int32(2**31 - 1)


@compiled
def solve_path(  # noqa: C901 - one compiled loop
    gram: Any,
    correct: Any,
    signs: Any,
    cs: Any,
    relative: bool,
    tolerance: float,
    coefficients: Any,
    biases: Any,
) -> tuple[float, int]:
    """Solve the SVM for each C, starting from the solution of the previous C, the first from that of the critical C.

    Args:
        gram: (n, n) float32, C-contiguous.
        correct: (n,) bool, y = +1.
        signs: (n,) float64, y * w.
        cs: (M,) float64, ascending.
        relative: Whether the values of C are multiples of the critical C.
        tolerance: Largest violation of the optimality conditions; margins are 1.
        coefficients: (M, n) float64, written: b.
        biases: (M,) float64, written.

    Returns:
        The critical C, up to which every multiplier is at its bound, and the number of values of C that were not solved
        to a tolerance of 1e-3.
    """
    n = len(signs)
    f, g, b = np.zeros(n), np.zeros(n, np.float32), np.zeros(n)
    lo, hi = np.zeros(n), np.zeros(n)
    _product(gram, signs, f)
    highest, lowest = -_HUGE, _HUGE
    for t in range(n):
        if correct[t]:
            highest = max(highest, f[t])
        else:
            lowest = min(lowest, f[t])
    critical = 2.0 / max(highest - lowest, 1e-12)

    # each C from the solution of the previous one
    failed = 0
    for t in range(n):
        b[t] = critical * signs[t]
    for m in range(len(cs)):
        c = cs[m] * critical if relative else cs[m]
        if c <= critical * (1 + 1e-9):  # every multiplier is at its bound, the bias anywhere in an interval
            for t in range(n):
                coefficients[m, t] = c * signs[t]
            biases[m] = -c * (highest + lowest) / 2
            continue
        for t in range(n):
            lo[t], hi[t] = min(0.0, c * signs[t]), max(0.0, c * signs[t])
        gap = _HUGE
        # steps update g in single precision, so each round recomputes it in double precision
        for round_ in range(_MAX_ROUNDS):
            _product(gram, b, f)
            up, down, free, count = -_HUGE, _HUGE, 0.0, 0
            for t in range(n):
                f[t] = (1.0 if correct[t] else -1.0) - f[t]
                g[t] = f[t]
                if b[t] < hi[t]:
                    up = max(up, f[t])
                if b[t] > lo[t]:
                    down = min(down, f[t])
                if lo[t] < b[t] < hi[t]:
                    free += f[t]
                    count += 1
            biases[m] = free / count if count else (up + down) / 2
            gap = up - down
            if gap <= 2 * tolerance:
                break
            if round_ < _QUICK_ROUNDS:
                _ascend(gram, lo, hi, b, g, np.float32((up + down) / 2), tolerance)
            else:
                _ascend_carefully(gram, lo, hi, b, f, tolerance)
        for t in range(n):
            coefficients[m, t] = b[t]
        failed += gap > _ACCEPTABLE
    return critical, failed


@compiled
def _product(gram: Any, b: Any, out: Any) -> None:
    """Set ``out`` to gram @ b in double precision, without reading the rows with b = 0 (gram is symmetric)."""
    out[:] = 0.0
    for i in range(len(b)):
        if b[i] != 0.0:
            row, scale = gram[i], b[i]
            for t in range(len(out)):
                out[t] += scale * row[t]


@compiled
def _ascend(gram: Any, lo: Any, hi: Any, b: Any, g: Any, centre: Any, tolerance: float) -> None:
    """Optimize pairs until no pair violates the conditions by more than the tolerance; the bias is near ``centre``."""
    n = len(g)
    bits = np.int32(1)
    while (1 << bits) < n:
        bits += np.int32(1)
    zero = np.float32(0)
    # added to g: 0 where b can rise (fall), else a number that never wins the maximum
    may_rise, may_fall = np.zeros(n, np.float32), np.zeros(n, np.float32)
    for t in range(n):
        may_rise[t] = zero if b[t] < hi[t] else _NEVER
        may_fall[t] = zero if b[t] > lo[t] else _NEVER
    largest = zero
    for t in range(n):
        largest = max(largest, gram[t, t])
    min_curvature, scale = _MIN_CURVATURE * largest, np.float32(1) / max(largest, np.float32(1e-30))
    i, j, step = 0, 0, zero
    for _ in range(_STEPS_PER_EXAMPLE * n):
        i = _move_and_find_first(g, gram[i], gram[j], step, may_rise, centre, bits)
        row = gram[i]
        j, gap = _find_second(g, row, scale, may_fall, g[i], bits)
        if gap <= tolerance or may_rise[i] < zero or may_fall[j] < zero:
            break
        centre = g[i] - np.float32(0.5) * gap
        curvature = max(float(row[i]) + gram[j, j] - 2 * row[j], min_curvature)
        amount = _RELAXATION * float(g[i] - g[j]) / curvature
        room_i, room_j = hi[i] - b[i], b[j] - lo[j]
        if amount < room_i and amount < room_j:
            b[i] += amount
            b[j] -= amount
        elif room_i <= room_j:
            amount, b[i] = room_i, hi[i]
            b[j] = b[j] - room_i if room_i < room_j else lo[j]
        else:
            amount, b[j] = room_j, lo[j]
            b[i] += room_j
        may_rise[i] = zero if b[i] < hi[i] else _NEVER
        may_rise[j] = zero if b[j] < hi[j] else _NEVER
        may_fall[i] = zero if b[i] > lo[i] else _NEVER
        may_fall[j] = zero if b[j] > lo[j] else _NEVER
        step = np.float32(amount)


@compiled
def _ascend_carefully(gram: Any, lo: Any, hi: Any, b: Any, g: Any, tolerance: float) -> None:
    """Optimize pairs as :func:`_ascend` does, in double precision and with the exact gain of a pair.

    Where examples differ little, 1 + k + k^2 is far from 1 / (1 - k), and the quick steps make little progress.
    """
    n = len(g)
    for _ in range(_STEPS_PER_EXAMPLE * n):
        i, j, highest, lowest, most = -1, -1, -_HUGE, _HUGE, 0.0
        for t in range(n):
            if b[t] < hi[t] and g[t] > highest:
                i, highest = t, g[t]
        if i < 0:
            break
        row = gram[i]
        for t in range(n):
            if b[t] > lo[t]:
                lowest = min(lowest, g[t])
                gap = max(highest - g[t], 0.0)
                gain = gap * gap / max(float(row[i]) + gram[t, t] - 2 * row[t], _MIN_PAIR_CURVATURE)
                if gain > most:
                    j, most = t, gain
        if j < 0 or highest - lowest <= tolerance:
            break
        amount = (g[i] - g[j]) / max(float(row[i]) + gram[j, j] - 2 * row[j], _MIN_PAIR_CURVATURE)
        room_i, room_j = hi[i] - b[i], b[j] - lo[j]
        amount = min(amount, room_i, room_j)
        b[i] = hi[i] if amount == room_i else b[i] + amount
        b[j] = lo[j] if amount == room_j else b[j] - amount
        other = gram[j]
        for t in range(n):
            g[t] -= amount * (float(row[t]) - other[t])


# Compilers do not vectorize the position of a maximum of floats. The bits of floats can be mapped to integers of the
# same order, whose lowest bits can hold the position: the two functions below find a maximum to 13 bits or more in one
# pass. Subtracting the centre first makes this accurate enough near the solution, where the candidates differ little.


@compiled
def _move_and_find_first(g: Any, up: Any, down: Any, step: Any, may_rise: Any, centre: Any, bits: Any) -> Any:
    """Subtract step * (up - down) from g, and return the position of its maximum among those that can rise."""
    best, high = _LEAST, np.int32(-1) << bits
    for t in range(len(g)):
        moved = g[t] - step * (up[t] - down[t])
        g[t] = moved
        key = np.float32(moved - centre + may_rise[t]).view(np.int32)
        key = key ^ ((key >> np.int32(31)) & _MAGNITUDE)
        best = max(best, (key & high) | np.int32(t))
    return best & ~high


@compiled
def _find_second(g: Any, row: Any, scale: Any, may_fall: Any, largest: Any, bits: Any) -> tuple[int, Any]:
    """Return the example that can fall with the largest gain, and the largest violation of any that can fall."""
    best, widest, high = np.int32(0), np.int32(0), np.int32(-1) << bits
    zero, one = np.float32(0), np.float32(1)
    for t in range(len(g)):
        gap = largest - g[t] + may_fall[t]
        gap = gap if gap > zero else zero
        k = scale * row[t]
        gain = gap * gap * (one + k + k * k)
        widest = max(widest, np.float32(gap).view(np.int32))
        best = max(best, (np.float32(gain).view(np.int32) & high) | np.int32(t))
    return best & ~high, np.int32(widest).view(np.float32)
