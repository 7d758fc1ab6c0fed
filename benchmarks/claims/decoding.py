"""Decoded "hard" images are harder than "easy" ones (Fig. 8b).

For every class with a pattern three embeddings are decoded: the reference caption's, and those a fifth of the arc from
there towards failure and towards success. The SVM is fitted without whitening, so that its normal is a direction of
the CLIP space. An image counts only if an independent classifier takes it for its class.

The accuracy on real digits is reported for comparison: in the unusual tint, which the hard images should show; in the
usual tint; and in any of the ten tints, which a caption without a tint asks for. Training shows a planted digit in
two tints only, so any tint is harder than the unusual one: here the neutral caption is no middle between hard and easy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from claims.common import World, all_captions
from claims.comparing import Comparison
from claims.generating import judge, make, seeds_of
from lightning_failures.bundled.digits.render import draw_images
from lightning_failures.directions import fit_failure_directions
from lightning_failures.directions.decoding import decoding_targets

__all__ = ["COMPARISONS", "run"]

ALPHA, PER_CLASS, KEPT = 0.2, 10, 0.8
NAMES = ("hard", "reference", "easy")

COMPARISONS = (
    Comparison("accuracy on decoded images, reference > hard", ("accuracy",), "reference", "hard"),
    Comparison("accuracy on decoded images, easy > reference", ("accuracy",), "easy", "reference"),
    Comparison("accuracy on decoded images, easy > hard", ("accuracy",), "easy", "hard"),
    Comparison(f"least share of an arm that shows the digit > {KEPT}", ("kept",), "least", str(KEPT)),
)


def run(world: World) -> dict[str, Any]:
    """Mean over classes of the plain model's accuracy on the decoded images that show their digit."""
    split, plain = world.split("validation"), world.base()
    directions = fit_failure_directions(
        split.embeddings,
        split.grades.labels,
        split.grades.correct,
        groups=split.grades.groups,
        whiten=False,
        permutations=0,
        seed=world.seed,
    )
    right: dict[str, list[float]] = {name: [] for name in NAMES}
    kept: dict[str, list[float]] = {name: [] for name in NAMES}
    for k in world.patterns():
        targets = decoding_targets(all_captions()[k].reference, directions.weight[directions.row(k)], alpha=ALPHA)
        for name in NAMES:
            embedding: torch.Tensor = getattr(targets, name)
            made = make(embedding.expand(PER_CLASS, -1), seeds_of(world.seed, k, PER_CLASS))
            shows = judge().logits(made).argmax(dim=1) == k
            kept[name].append(float(shows.float().mean()))
            if bool(shows.any()):
                right[name].append(float((plain.logits(made[shows]).argmax(dim=1) == k).float().mean()))
    shares = {name: float(np.mean(values)) for name, values in kept.items()}
    return {
        "accuracy": {name: float(np.mean(values)) for name, values in right.items()},
        "kept": {"least": min(shares.values()), str(KEPT): KEPT} | shares,
        "real digits": real(world),
        "classes": len(world.patterns()),
    }


def real(world: World) -> dict[str, float]:
    """Accuracy of the plain model on test digits of the planted classes."""
    figures = world.judge(world.base())
    images, labels, _ = draw_images("test", 2000, world.rng(5))
    planted = torch.tensor([truth is not None for truth in world.data("test").truth])[labels]
    right = world.base().logits(images).argmax(dim=1) == labels
    return {
        "unusual tint": figures["minority"],
        "any tint": float(right[planted].float().mean()),
        "usual tint": figures["majority"],
    }
