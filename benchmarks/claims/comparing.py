"""Two arms over paired seeds: the mean difference, its interval, and whether the claim holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_failures.stats.intervals import mean_interval

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """A claim: in one table of figures, one arm is above another.

    Attributes:
        name: Says it in words.
        table: Where the figures {arm: figure} lie in what a seed has measured.
        first: The arm that should win.
        second: Its rival.
        margin: By how much the first may be below and still count as not inferior; 0: it must be above.
    """

    name: str
    table: tuple[str, ...]
    first: str
    second: str
    margin: float = 0.0


def compare(claim: str, comparison: Comparison, raw: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """One entry of the result; seeds in which the comparison is not defined are left out and counted."""
    seeds: list[dict[str, Any]] = []
    for seed, measured in sorted(raw.items()):
        table: Any = measured
        for key in comparison.table:
            table = table.get(key, {})
        first, second = table.get(comparison.first), table.get(comparison.second)
        if first is not None and second is not None:
            others = {k: v for k, v in table.items() if k not in (comparison.first, comparison.second)}
            seeds.append({"seed": seed, comparison.first: first, comparison.second: second} | others)
    gains = [row[comparison.first] - row[comparison.second] for row in seeds]
    interval = None if np.isnan(gains).any() else mean_interval(gains)  # 90 %, paired
    entry: dict[str, Any] = {
        "name": f"{claim}: {comparison.name}",
        "claim": claim,
        "holds": interval is not None and interval[0] > -comparison.margin,
        "difference": float(np.mean(gains)) if gains else None,
        "interval": None if interval is None else list(interval),
        "first": comparison.first,
        "second": comparison.second,
    }
    if comparison.margin:
        entry["not_inferior_by_more_than"] = comparison.margin
    if len(seeds) < len(raw):
        entry["seeds_left_out"] = sorted(set(raw) - {row["seed"] for row in seeds})
    return entry | {"seeds": seeds}
