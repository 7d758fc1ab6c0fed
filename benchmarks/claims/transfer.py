"""The directions and captions of one network hold for the failures of another one (C.2.3).

The other network has another seed, or another architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from planted_kinds import Part, logits
from planted_kinds import fit as fit_batch_normalised
from torch import Tensor

from claims.common import SHORTCUT, World, all_captions, fit, grade_images
from claims.comparing import Comparison
from lightning_failures.captions import score_captions
from lightning_failures.directions import fit_failure_directions
from lightning_failures.stats.agreement import auc

__all__ = ["COMPARISONS", "run"]

STEPS, NEAREST = 280, 20
NETWORKS = ("another seed", "another architecture")

COMPARISONS = tuple(
    Comparison(f"{words}, {network}", (network, figure), *arms)
    for network in NETWORKS
    for words, figure, arms in (
        ("AUROC of the first network's directions for failures > 0.5", "AUROC", ("first", "chance")),
        ("AUROC not more than 0.05 below the network's own directions", "AUROC", ("first", "own", 0.05)),
        ("error rate where the first network's directions flag > elsewhere", "error rate", ("flagged", "others")),
        (
            f"error rate of the {NEAREST} images nearest the first network's captions, hard > easy",
            "captions",
            ("hard", "easy"),
        ),
    )
)


def run(world: World) -> dict[str, Any]:
    """Return the figures of both networks on the test images, the mean over the first network's patterns."""
    train = world.data("train")
    part = Part(train.images, *([train.labels.numpy()] * 2), np.zeros(len(train), np.bool_), np.asarray(train.groups))
    other = fit(train.images, train.labels, seed=world.seed + 1000)
    normalised = fit_batch_normalised(part, len(train.classes), seed=world.seed, steps=STEPS)
    answers: dict[str, Callable[[Tensor], Tensor]] = {
        "another seed": other.logits,
        "another architecture": lambda images: logits(normalised, images),
    }
    return {name: _on(world, answer) for name, answer in answers.items()}


def _on(world: World, answer: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    seen, test, first = world.split("validation", SHORTCUT), world.split("test", SHORTCUT), world.directions()
    graded = grade_images(seen.data, seen.data.labels, answer(seen.data.images))
    own = fit_failure_directions(
        seen.embeddings, graded.labels, graded.correct, groups=graded.groups, permutations=0, seed=world.seed
    )
    labels = test.grades.labels
    failed = grade_images(test.data, test.data.labels, answer(test.data.images)).failed.numpy()
    values = {
        name: one.decision_values(test.embeddings, labels).numpy() for name, one in (("first", first), ("own", own))
    }
    rows: dict[str, dict[str, list[float]]] = {
        "AUROC": {"first": [], "own": []},
        "error rate": {"flagged": [], "others": []},
        "captions": {"hard": [], "easy": []},
    }
    for k in world.patterns():
        mine = (labels == k).numpy()
        for name, of_all in values.items():
            rows["AUROC"][name].append(auc(-of_all[mine], failed[mine]))
        flagged = values["first"][mine] < 0
        rows["error rate"]["flagged"].append(failed[mine][flagged].mean() if flagged.any() else np.nan)
        rows["error rate"]["others"].append(failed[mine][~flagged].mean() if not flagged.all() else np.nan)
        captions = all_captions()[k]
        scores = score_captions(first, k, captions.embeddings, captions.reference)
        for name, m in (("hard", int(scores.argmin())), ("easy", int(scores.argmax()))):
            near = (test.embeddings[mine] @ captions.embeddings[m]).argsort(descending=True, stable=True)[:NEAREST]
            rows["captions"][name].append(failed[mine][near.numpy()].mean())
    means = {
        figure: {arm: float(np.nanmean(found)) for arm, found in arms.items() if not np.isnan(found).all()}
        for figure, arms in rows.items()
    }
    means["AUROC"]["chance"] = 0.5
    return means | {"accuracy": float(1 - failed.mean())}
