"""The hardest caption of a direction names the unusual tint as often as Domino's caption of its slice.

Domino's rule: of the slice with the most failures, the caption nearest to (mean of the slice - mean of the class). The
mixture has two slices a class (B.1.4), or 25 of all classes together (its defaults). ``flagged failures`` is the same
rule for the failures that the direction flags.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from claims.common import World, all_captions
from claims.comparing import Comparison
from lightning_failures.baselines import fit_error_aware_mixture
from lightning_failures.captions import score_captions
from lightning_failures.core.types import FloatArray
from lightning_failures.directions import fit_failure_directions

__all__ = ["COMPARISONS", "run"]

SHORTCUTS = (0.95, 0.8)
NEAREST = 20
OURS, FLAGGED, RIVALS = "direction", "flagged failures", ("domino, 2 slices", "domino, 25 slices")
NAMES, FAILURES = "names the tint", "failures"

COMPARISONS = tuple(
    Comparison(f"{words}, shortcut {shortcut}, {ours} not below {rival}", (str(shortcut), figure), ours, rival, 0.02)
    for figure, words in (
        (NAMES, "hardest caption names the unusual tint"),
        (FAILURES, f"failures among the {NEAREST} test images of a class nearest to the caption"),
    )
    for shortcut in SHORTCUTS
    for ours in (OURS, FLAGGED)
    for rival in RIVALS
)


def run(world: World) -> dict[str, Any]:
    """Return both figures of every method, the mean over the classes with a plant and a direction."""
    return {str(shortcut): _at(world, shortcut) for shortcut in SHORTCUTS}


def _at(world: World, shortcut: float) -> dict[str, Any]:
    seen, test = world.split("validation", shortcut), world.split("test", shortcut)
    x, labels, failed = seen.embeddings.numpy(), seen.grades.labels.numpy(), seen.grades.failed.numpy()
    fitted = fit_failure_directions(
        seen.embeddings, labels, ~failed, groups=seen.grades.groups, permutations=0, seed=world.seed
    )
    assert seen.grades.predictions is not None
    whole = fit_error_aware_mixture(x, labels, seen.grades.predictions.numpy(), seed=world.seed)
    weights = whole.responsibilities(x, labels)
    found: dict[str, dict[str, list[float]]] = {NAMES: {}, FAILURES: {}}
    texts: dict[str, dict[str, str]] = {}
    for k in fitted.classes.tolist():
        planted = seen.data.truth[k]
        if planted is None:
            continue
        captions, rows = all_captions()[k], np.flatnonzero(labels == k)
        own = fit_error_aware_mixture(
            x[rows], np.zeros(len(rows), np.int64), failed[rows].astype(np.int64), slices=2, seed=world.seed
        )
        vectors = captions.embeddings.numpy()
        chosen = {OURS: int(score_captions(fitted, k, captions.embeddings, captions.reference).argmin())}
        flagged = failed[rows] & (fitted.out_of_fold.numpy()[rows] < 0)
        if flagged.any():
            chosen[FLAGGED] = int((vectors @ (x[rows][flagged].mean(axis=0) - x[rows].mean(axis=0))).argmax())
        for name, of_slices in zip(RIVALS, (own.responsibilities(x[rows]), weights[rows]), strict=True):
            chosen[name] = int((vectors @ _slice_mean(x[rows], of_slices, failed[rows])).argmax())
        of_class = test.grades.labels == k
        wrong = test.grades.failed[of_class].float()
        for name, m in chosen.items():
            nearest = (test.embeddings[of_class] @ captions.embeddings[m]).argsort(descending=True, stable=True)
            found[FAILURES].setdefault(name, []).append(float(wrong[nearest[:NEAREST]].mean()))
            found[NAMES].setdefault(name, []).append(float(planted["unusual_tint"] in captions.texts[m].split()))
        texts[seen.data.classes[k]] = {name: captions.texts[m] for name, m in chosen.items()}
    means = {figure: {arm: float(np.mean(values)) for arm, values in arms.items()} for figure, arms in found.items()}
    return means | {"captions": texts}


def _slice_mean(x: FloatArray, weights: FloatArray, failed: torch.Tensor | FloatArray) -> FloatArray:
    """Return the mean (D,) of the slice with the highest error rate in a class, minus that of the class."""
    mass = weights.sum(axis=0)
    rates = np.where(mass >= 1, weights.T @ np.asarray(failed, dtype=np.float64) / np.maximum(mass, 1), -1)
    worst = weights[:, int(rates.argmax())]
    return np.asarray(worst @ x / worst.sum() - x.mean(axis=0))
