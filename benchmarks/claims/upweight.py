"""Upweighting flagged examples lifts the minority, near the oracle (Table 1).

Arms weigh by the same factor: ``flagged``, the training examples that the intervention flags; ``random``, as many of
every class; ``oracle``, those in the unusual tint. ``plain`` weighs nothing. As in the callback, classes without a
pattern are left alone, and so are flagged examples whose labels are suspected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from claims.common import MORE_EPOCHS, World, columns, fit, unusual
from claims.comparing import Comparison
from lightning_failures.interventions import JudgedExamples, Upweight
from lightning_failures.interventions.label_errors import suspect_labels

__all__ = ["COMPARISONS", "run"]

FACTOR = 2.0
SHARE, LEAST_GAIN, LOSS = 0.6, 0.05, 0.01

COMPARISONS = tuple(
    comparison
    for way in ("retrained", "continued")
    for comparison in (
        Comparison(f"minority accuracy, flagged > plain, {way}", (way, "minority"), "flagged", "plain"),
        Comparison(f"minority accuracy, flagged > random, {way}", (way, "minority"), "flagged", "random"),
        Comparison(
            f"gain of flagged >= {SHARE} of the gain of the oracle, {way}",
            (way, "gain"),
            "flagged",
            f"{SHARE} of the oracle",
        ),
        Comparison(
            f"overall accuracy in the mix of training, flagged not below plain by {LOSS}, {way}",
            (way, "all, in the mix of training"),
            "flagged",
            "plain",
            margin=LOSS,
        ),
    )
)


def run(world: World) -> dict[str, Any]:
    """Train every arm both ways."""
    data, base = world.data("train"), world.base()
    weights = _weights(world)
    tables: dict[str, Any] = {}
    for way, start, epochs in (("retrained", None, base.epochs), ("continued", base, MORE_EPOCHS)):
        arms = {"plain": world.judge(base if start is None else world.continued())}
        for arm, drawn in weights.items():
            model = fit(data.images, data.labels, seed=world.seed, epochs=epochs, weights=drawn, start=start)
            arms[arm] = world.judge(model)
        tables[way] = columns(arms)
        gain = {arm: figures["minority"] - arms["plain"]["minority"] for arm, figures in arms.items() if arm != "plain"}
        if gain["oracle"] >= LEAST_GAIN:  # else a share of it says nothing
            tables[way]["gain"] = gain | {f"{SHARE} of the oracle": SHARE * gain["oracle"]}
    minority = unusual(data)[0].numpy()
    flagged = weights["flagged"] > 1
    tables["flags"] = {
        "flagged": int(flagged.sum()),
        "unusual": int(minority.sum()),
        "unusual among flagged": float(minority[flagged].mean()) if flagged.any() else None,
        "flagged among unusual": float(flagged[minority].mean()),
    }
    return tables


def _weights(world: World) -> dict[str, NDArray[np.float64]]:
    data, report = world.data("train"), world.report()
    labels = data.labels.numpy()
    values = world.directions().decision_values(world.embeddings("train"), labels).numpy()
    reasons = tuple(None if entry.pattern else "no pattern" for entry in report.classes)
    flagged = Upweight(FACTOR).decide(JudgedExamples(labels, values, tuple(data.classes), reasons)).weights
    grades = world.split("train").grades
    found = suspect_labels(world.embeddings("train"), labels, grades.predictions, groups=grades.groups)
    flagged[found.suspect.numpy()] = 1.0
    random = flagged.copy()
    rng = world.rng(2)
    for k in range(len(data.classes)):
        rows = np.flatnonzero(labels == k)
        random[rows] = rng.permutation(flagged[rows])
    oracle = np.where(unusual(data)[0].numpy(), FACTOR, 1.0)
    return {"flagged": flagged, "random": random, "oracle": oracle}
