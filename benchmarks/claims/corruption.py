"""A corruption is found, weights do not fix it, and the diagnosis says so (B.3).

Strong Gaussian noise on half of the validation and test images, and on 10 % of training, as in the paper, or on half
of it; no shortcut. The second is what the diagnosis calls intrinsically hard: training holds as many as validation. In
the first, training lacks what validation has, and more such images would help.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from claims.common import World, embed, fit, grade_images
from claims.comparing import Comparison
from lightning_failures.analysis.analyse import analyse
from lightning_failures.analysis.diagnosis import HARD, UNDER_REPRESENTED
from lightning_failures.baselines import compare_rankings
from lightning_failures.interventions import JudgedExamples, Upweight

__all__ = ["COMPARISONS", "run"]

SHORTCUT, DEVIATION, TOP = 0.5, 250.0, 50
SHARES = {"10 % of training": 0.1, "half of training": 0.5}
LEAST_GAIN = 0.05

MORE = "more corrupted images"

COMPARISONS = (
    Comparison("accuracy on corrupted images, half > 10 % of training corrupted", (MORE,), *reversed(SHARES)),
    Comparison(
        "share of the diagnosed classes that are called under-represented > other kinds, 10 % of training corrupted",
        ("10 % of training", UNDER_REPRESENTED),
        "named",
        "other kinds",
    ),
    *(
        Comparison(f"{words}, {where} corrupted", (where, figure), *arms)
        for where in SHARES
        for words, figure, arms in (
            (f"corrupted among the {TOP} most flagged > chance", "precision", ("directions", "chance")),
            (
                f"corrupted among the {TOP} most flagged, not below confidence",
                "precision",
                ("directions", "confidence", 0.02),
            ),
            (f"balanced weights gain less than {LEAST_GAIN} on corrupted images", "gain", ("least", "balanced")),
            ("share of the diagnosed classes that are called hard > other kinds", HARD, ("named", "other kinds")),
        )
    ),
)


def run(world: World) -> dict[str, Any]:
    """Return the figures of both shares."""
    found: dict[str, Any] = {where: _at(world, share) for where, share in SHARES.items()}
    return found | {MORE: {where: one["accuracy on corrupted"]["plain"] for where, one in found.items()}}


def corrupted(images: Tensor, share: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return images (n, 3, H, W) uint8 with noise on a share of them, and which have it, (n,) bool."""
    rows = torch.from_numpy(rng.random(len(images)) < share)
    noise = torch.from_numpy(rng.normal(0, DEVIATION, (int(rows.sum()), *images.shape[1:]))).float()
    images = images.clone()
    images[rows] = (images[rows].float() + noise).clamp(0, 255).to(torch.uint8)
    return images, rows


def _at(world: World, share: float) -> dict[str, Any]:
    rng = world.rng(3)
    train, seen, test = (world.data(part, SHORTCUT) for part in ("train", "validation", "test"))
    images, _ = corrupted(train.images, share, rng)
    seen_images, _ = corrupted(seen.images, 0.5, rng)
    test_images, noisy = corrupted(test.images, 0.5, rng)
    x, test_x = embed(images), embed(test_images)
    model = fit(images, train.labels, seed=world.seed)
    found = analyse(
        grade_images(seen, seen.labels, model.logits(seen_images)),
        embed(seen_images),
        reference=x,
        training_labels=train.labels,
        seed=world.seed,
    )
    directions = found.directions
    assert directions is not None

    logits = model.logits(test_images)
    graded = grade_images(test, test.labels, logits)
    assert graded.confidence is not None
    hardness = {
        "directions": -directions.decision_values(test_x, test.labels).numpy(),
        "confidence": 1 - graded.confidence.numpy(),
    }
    precision: dict[str, float] = {}
    for score in compare_rankings(hardness, test.labels.numpy(), {"noise": noisy.numpy()}, top=[TOP]):
        precision |= {score.method: score.precision, "chance": score.chance}

    classes = found.report.classes
    reasons = tuple(None if one.pattern else "no pattern" for one in classes)
    values = directions.decision_values(x, train.labels).numpy()
    examples = JudgedExamples(train.labels.numpy(), values, tuple(train.classes), reasons)
    weights = Upweight(triage=False).decide(examples).weights
    again = fit(images, train.labels, seed=world.seed, weights=weights)
    right = {
        name: (one.logits(test_images).argmax(dim=1) == test.labels)[noisy].float().mean().item()
        for name, one in (("plain", model), ("balanced", again))
    }
    kinds = [one.diagnosis.kind for one in classes if one.diagnosis is not None]
    return {
        "precision": precision,
        "accuracy on corrupted": right,
        "gain": {"least": LEAST_GAIN, "balanced": right["balanced"] - right["plain"]},
        **{kind: _named(kind, kinds) for kind in (HARD, UNDER_REPRESENTED)},
        "kinds": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def _named(kind: str, kinds: list[str]) -> dict[str, float]:
    """Return the share of the diagnosed classes with a kind, and with another one; nothing without any."""
    share = float(np.mean([one == kind for one in kinds])) if kinds else None
    return {} if share is None else {"named": share, "other kinds": 1 - share}
