"""Growth of a binary decision tree on features that are already sorted, as scikit-learn's trees grow.

The criterion is the entropy with class weights. Of cuts with equal gains that on the first feature wins, and of those
on one feature the lowest; scikit-learn draws lots. A node is a leaf if it is pure, too small to be split, at the
maximum depth, or constant in every feature.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lightning_failures.stats.kernels import compiled
from lightning_failures.stats.kernels.gain import TIE, unpack, x_log_x

_EQUAL = 1e-12  # gains that differ by rounding only
_LEAST_SHARE = math.log(2) * (1 - 1e-9)


@compiled
def grow(
    keys: Any,
    weight: float,
    min_leaf: int,
    max_depth: int,
    logs: Any,
    feature: Any,
    threshold: Any,
    left: Any,
    right: Any,
    depth: Any,
) -> int:
    """Grow a tree and return its number of nodes, which are numbered from the root down, left before right.

    Args:
        keys: (F, m) int64, one row per feature, sorted and then reordered: the value in the upper half, see ``unpack``;
            2 * row + failed in the lower half.
        weight: Weight of a failure; that of a success is 1.
        min_leaf: Minimum number of examples in a leaf.
        max_depth: Maximum depth.
        logs: (m + 1,) float64 at least, k log2(k).
        feature: (nodes,) int64, written: the feature of each node, -1 for a leaf.
        threshold: (nodes,) float64, written: examples with values up to it go left; -2 for a leaf.
        left: (nodes,) int64, written: the left child, -1 for a leaf.
        right: (nodes,) int64, written.
        depth: (nodes,) int64, written.
    """
    n_features, m = keys.shape
    highest = np.int64(0)
    for i in range(m):
        highest = max(highest, (keys[0, i] & 0xFFFFFFFF) >> 1)
    goes_left = np.zeros(highest + 1, np.bool_)
    moved = np.empty(m, np.int64)
    # nodes to be split: first example, end, depth, parent
    stack = np.empty((min(max_depth, m) + 2, 4), np.int64)
    stack[0] = 0, m, 0, -1
    waiting, count = 1, 0
    while waiting:
        waiting -= 1
        first, end, level, parent = stack[waiting]
        node = count
        count += 1
        if parent >= 0 and left[parent] < 0:
            left[parent] = node
        elif parent >= 0:
            right[parent] = node
        feature[node], threshold[node], left[node], right[node], depth[node] = -1, -2.0, -1, -1, level
        if level >= max_depth or end - first < 2 * min_leaf:
            continue
        chosen, at = _best_cut(keys, first, end, weight, min_leaf, logs)
        if chosen < 0:
            continue
        feature[node] = chosen
        below, above = unpack(keys[chosen, at - 1]), unpack(keys[chosen, at])
        middle = float(below) / 2 + float(above) / 2
        threshold[node] = float(below) if middle == above else middle

        # move the examples of the left child to the front of every feature, in their order
        for i in range(first, end):
            goes_left[(keys[chosen, i] & 0xFFFFFFFF) >> 1] = i < at
        for j in range(n_features):
            if j == chosen:
                continue
            row = keys[j]
            to, rest = first, 0
            for i in range(first, end):
                key = row[i]
                is_left = goes_left[(key & 0xFFFFFFFF) >> 1]
                row[to] = key
                moved[rest] = key
                to += is_left
                rest += not is_left
            row[to:end] = moved[:rest]
        stack[waiting] = at, end, level + 1, node
        stack[waiting + 1] = first, at, level + 1, node
        waiting += 2
    return count


@compiled
def _best_cut(keys: Any, first: int, end: int, weight: float, min_leaf: int, logs: Any) -> tuple[int, int]:
    """Return the feature and the position of the best cut of a node; the feature is -1 if the node is a leaf."""
    size, n_failed = end - first, 0
    for i in range(first, end):
        n_failed += keys[0, i] & 1
    n_correct = size - n_failed
    if n_failed == 0 or n_correct == 0:
        return -1, 0
    all_failed, total = weight * n_failed, weight * n_failed + n_correct
    of_failed = all_failed * math.log2(weight)  # the part of the logarithms of weighted counts that is the same for all
    entropy = x_log_x(total) - weight * logs[n_failed] - of_failed - logs[n_correct]
    chosen, at, most = -1, 0, -1.0
    for j in range(len(keys)):
        row = keys[j, first:end]
        failures = 0
        for i in range(min_leaf - 1):
            failures += row[i] & 1
        limit = unpack(row[min_leaf - 1]) + TIE
        for i in range(min_leaf, size - min_leaf + 1):
            failures += row[i - 1] & 1
            value = unpack(row[i])
            is_cut = value > limit
            limit = value + TIE
            if not is_cut:
                continue
            # in bits the gain is at most the square of the phi coefficient / ln 2, which takes no logarithm
            successes = i - failures
            a, b = weight * failures, float(successes)
            apart = a * n_correct - b * all_failed
            if apart * apart < most * (all_failed * n_correct) * ((a + b) * (total - a - b)) * _LEAST_SHARE:
                continue
            sides = weight * (logs[failures] + logs[n_failed - failures]) + of_failed
            sides += logs[successes] + logs[n_correct - successes]
            gain = (entropy + sides - x_log_x(a + b) - x_log_x(total - a - b)) / total
            if gain > most + _EQUAL:
                chosen, at, most = j, first + i, gain
    return chosen, at
