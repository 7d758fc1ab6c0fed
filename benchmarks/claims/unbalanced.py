"""Directions of a validation set distributed like training, where 5 % bear the unusual tint (B.1.7).

The same model and test set as in the other claims; the validation set has, of each class, all images in the usual
tint and one in the unusual tint for 19 of these. Beside it, as many images of each class with half in either tint,
and the same unbalanced set with all failures in the fit: a probe of labels learns the shortcut from such a set, and
doubts the labels of the minority.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from claims.common import SHORTCUT, World, all_captions, embed, grade_images, unusual
from claims.comparing import Comparison
from lightning_failures.baselines import compare_rankings
from lightning_failures.bundled.digits import ColouredDigits
from lightning_failures.captions import score_captions
from lightning_failures.core.types import BoolArray
from lightning_failures.directions import FailureDirections, fit_failure_directions

__all__ = ["COMPARISONS", "run"]

SIZE, MINORITY = 8000, 0.05
TOPS = (10, 50)
OURS, WHOLE, BALANCED = "like training", "like training, all failures", "balanced"

COMPARISONS = (
    *(
        Comparison(f"precision at {k} for the unusual tint, 5 % of validation, {words}", (f"precision at {k}",), *arms)
        for k in TOPS
        for words, arms in (
            ("directions not below confidence", (OURS, "confidence", 0.02)),
            ("of all failures not below confidence", (WHOLE, "confidence", 0.02)),
            ("not below a balanced validation set", (OURS, BALANCED, 0.02)),
        )
    ),
    Comparison("hardest caption names the unusual tint, 5 % > chance", ("names the tint",), OURS, "chance"),
)


def run(world: World) -> dict[str, Any]:
    """Return what both validation sets find among the test images."""
    data = ColouredDigits("validation", size=SIZE, seed=world.seed, shortcut=SHORTCUT)
    grades = grade_images(data, data.labels, world.base().logits(data.images))
    minority, planted = (one.numpy() for one in unusual(data))
    labels = data.labels.numpy()
    x = embed(data.images)
    kept = {name: np.ones(len(labels), dtype=np.bool_) for name in (OURS, BALANCED)}
    for k in np.unique(labels[planted]):
        usual, rare = (np.flatnonzero((labels == k) & (minority == one)) for one in (False, True))
        few = round(len(usual) * MINORITY / (1 - MINORITY))
        half = (len(usual) + few) // 2
        kept[OURS][rare[few:]] = False
        kept[BALANCED][np.concatenate([usual[half:], rare[half:]])] = False

    fits = {name: _fit(world, x, grades, rows) for name, rows in kept.items()}
    fits[WHOLE] = _fit(world, x, grades, kept[OURS], doubted=None)
    test = world.split("test")
    assert test.grades.confidence is not None
    found = {name: -one.decision_values(test.embeddings, test.grades.labels).numpy() for name, one in fits.items()}
    found["confidence"] = 1 - test.grades.confidence.numpy()
    tables: dict[str, Any] = {f"precision at {k}": {} for k in TOPS}
    hard, _ = unusual(test.data)
    for score in compare_rankings(found, test.grades.labels.numpy(), {"tint": hard.numpy()}, top=TOPS):
        tables[f"precision at {score.top}"] |= {score.method: score.precision, "chance": score.chance}
        tables["classes"] = score.classes
    tables["names the tint"] = {name: _naming(data, one) for name, one in fits.items()} | {"chance": 0.09}
    return tables


def _fit(world: World, x: torch.Tensor, grades: Any, rows: BoolArray, **options: Any) -> FailureDirections:
    kept = torch.from_numpy(rows)
    return fit_failure_directions(
        *(x[kept], grades.labels[kept], grades.correct[kept]),
        groups=grades.groups[kept],
        permutations=0,
        seed=world.seed,
        **options,
    )


def _naming(data: ColouredDigits, fitted: FailureDirections) -> float | None:
    """Return the share of the planted classes with a direction whose hardest caption names the unusual tint."""
    named = []
    for k in fitted.classes.tolist():
        planted, captions = data.truth[k], all_captions()[k]
        if planted is not None:
            hardest = int(score_captions(fitted, k, captions.embeddings, captions.reference).argmin())
            named.append(planted["unusual_tint"] in captions.texts[hardest].split())
    return float(np.mean(named)) if named else None
