"""The CV score follows the strength of the shortcut (Fig. 4), at fixed numbers of failures and successes."""

from __future__ import annotations

from typing import Any

import numpy as np
from demo_claims import SHORTCUTS, strength
from scipy.stats import spearmanr

from claims.common import World
from claims.comparing import Comparison

__all__ = ["COMPARISONS", "run"]

COMPARISONS = (
    Comparison("rank correlation of CV score and shortcut > 0", ("correlation",), "Spearman", "no relation"),
    *(
        Comparison(f"CV score above its null, shortcut {high} > {low}", ("score",), str(high), str(low))
        for low, high in ((0.7, 0.9), (0.9, 0.95), (0.95, 0.99))
    ),
)


def run(world: World) -> dict[str, Any]:
    """CV score minus its permutation mean, averaged over the planted classes, for each shortcut."""
    scores = {}
    for shortcut in SHORTCUTS:
        gains = strength(world.split("validation", shortcut), world.seed)
        if gains:  # else no class has enough failures
            scores[str(shortcut)] = float(np.mean(gains))
    rho = float(spearmanr([float(s) for s in scores], list(scores.values())).statistic)
    return {"score": scores, "correlation": {"Spearman": rho, "no relation": 0.0}}
