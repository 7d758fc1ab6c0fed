"""Information gain of the cuts of sorted features, exact, and the sorted features themselves.

A feature is a row of integers that sort like (value, code of the example): 64 bits for values in single precision, 32
for values in half precision.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled, compiled_strictly

TIE = np.float32(1e-7)  # scikit-learn's trees do not split between closer values
_TILE = 16  # examples that are packed at once: their values stay in the processor's cache
_SIGN, _MAGNITUDE, _MANTISSA = 0x8000, 0x7FFF, 0x3FF
_SMALLEST = np.float32(2.0**-24)  # of half precision


@compiled
def unpack(key: Any) -> Any:
    """Return the value of a 64-bit key: its upper half is a float32, the lower 31 bits of negative numbers flipped."""
    bits = np.int32(key >> 32)
    return np.int32(bits ^ ((bits >> 31) & 0x7FFFFFFF)).view(np.float32)


@compiled
def unpack_half(key: Any) -> Any:
    """Return the value of a 32-bit key: its upper half is a float16, its sign flipped, or all its bits if negative."""
    ordered = np.int64(key) >> 16
    bits = ordered ^ _SIGN if ordered & _SIGN else ordered ^ (_SIGN | _MAGNITUDE)
    exponent, mantissa = (bits & _MAGNITUDE) >> 10, bits & _MANTISSA
    size = np.float32(mantissa) * _SMALLEST
    if exponent > 0:
        size = np.int32(((exponent + 112) << 23) | (mantissa << 13)).view(np.float32)
    return -size if bits & _SIGN else size


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
def pack_halves(bits: Any, first: int, code: Any, keys: Any) -> None:
    """Write features in half precision, from ``first`` on, as rows of integers that sort like (value, code).

    Args:
        bits: (n, D) uint16, C-contiguous: the bits of the values.
        first: The first of the F features.
        code: (n,) int64 in [0, 2^16).
        keys: (F, n) uint32, written: the value in the upper half, the code in the lower half.
    """
    n, width = len(bits), len(keys)
    tile = np.empty((_TILE, width), np.uint32)
    for start in range(0, n, _TILE):
        size = min(_TILE, n - start)
        for i in range(size):
            row, to, its_code = bits[start + i, first : first + width], tile[i], np.uint32(code[start + i])
            for j in range(width):
                value = np.int32(np.int16(row[j]))
                ordered = np.uint32(value ^ np.int32((value >> np.int32(31)) | np.int32(-_SIGN)))
                to[j] = np.uint32(ordered << np.uint32(16)) | its_code
        for j in range(width):
            for i in range(size):
                keys[j, start + i] = tile[i, j]


@compiled
def x_log_x(x: float) -> float:
    """Return x * log2(x), and 0 for 0."""
    return x * math.log2(x) if x > 0 else 0.0


@compiled
def read_keys(row: Any, start: int, stop: int, code: Any, is_cut: Any) -> None:
    """Write the codes of a part of a sorted feature, and whether a cut below each example is allowed.

    Args:
        row: (n,) int64 or uint32, keys in ascending order.
        start: Position of the first example.
        stop: Position behind the last example.
        code: (n,) int64, written from ``start`` to ``stop``.
        is_cut: (n,) bool, written from ``start`` to ``stop``.
    """
    half = row.itemsize == 4
    mask = 0xFFFF if half else 0xFFFFFFFF
    limit = np.float32(0)
    if start > 0:
        limit = np.float32((unpack_half(row[start - 1]) if half else unpack(row[start - 1])) + TIE)
    for i in range(start, stop):
        code[i] = np.int64(row[i]) & mask
        value = unpack_half(row[i]) if half else unpack(row[i])
        is_cut[i] = i > 0 and value > limit
        limit = np.float32(value + TIE)


@compiled_strictly  # every caller gets the same digits, so equal features stay equal
def highest_gain(
    code: Any, is_cut: Any, failures: int, size: int, member: Any, of: tuple[int, int, int], logs: Any, most: float
) -> float:
    """Return the highest gain of a cut in a part of a sorted feature, or ``most`` if no cut exceeds it.

    Both classes weigh as much as the successes, so before a cut the entropy is one bit.

    Args:
        code: (m,) int64, see :func:`read_keys`. The lowest bit is 1 for a failure.
        is_cut: (m,) bool.
        failures: Number of failures below the part.
        size: Number of examples below the part.
        member: (codes,) int64, 1 where examples of a code are counted, else 0.
        of: Number of failures, of successes, and least number of examples on either side of a cut.
        logs: (n + 1,) float64, k log2(k).
        most: A gain to exceed, not negative.
    """
    n_failed, n_correct, least = of
    weight = n_correct / n_failed
    most_below = n_failed + n_correct - least
    log_of_weight = n_correct * math.log2(weight)
    for i in range(len(code)):
        if is_cut[i] and least <= size <= most_below:
            successes = size - failures
            a, b = weight * failures, float(successes)
            c, d = weight * (n_failed - failures), float(n_correct - successes)
            # the gain is at most the square of the phi coefficient, which takes no logarithm
            if (a - b) * (a - b) > most * ((a + b) * (c + d)) * (1 - 1e-9):
                loss = x_log_x(a + b) + x_log_x(c + d) - log_of_weight
                loss -= weight * (logs[failures] + logs[n_failed - failures])
                loss -= logs[successes] + logs[n_correct - successes]
                most = max(most, 1 - loss / (2 * n_correct))
        inside = member[code[i]]
        size += inside
        failures += inside & code[i]
    return most


@compiled
def best_gains(keys: Any, member: Any, n_failed: Any, n_correct: Any, least: Any, logs: Any, best: Any) -> None:
    """Find the highest gain of a cut of each feature, for some subsets of the examples.

    Args:
        keys: (F, n) int64 or uint32, each row sorted.
        member: (S, codes) int64, 1 where examples of a code belong to a subset, else 0.
        n_failed: (S,) int64, the number of failures in each subset.
        n_correct: (S,) int64, the number of successes in each subset. One without either has no gains.
        least: (S,) int64, the minimum number of examples on either side of a cut.
        logs: (n + 1,) float64, k log2(k).
        best: (S, F) float64, written.
    """
    features, n = keys.shape
    code, is_cut = np.empty(n, np.int64), np.empty(n, np.bool_)
    for j in range(features):
        read_keys(keys[j], 0, n, code, is_cut)
        for s in range(len(least)):
            best[s, j] = 0.0
            if n_failed[s] > 0 and n_correct[s] > 0:
                best[s, j] = highest_gain(
                    code, is_cut, 0, 0, member[s], (n_failed[s], n_correct[s], least[s]), logs, 0.0
                )
