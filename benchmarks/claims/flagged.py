"""Flagged images are the hard subpopulation more often than the least confident ones (Fig. 2).

A share of the training labels is wrong. What should come first within a class is the unusual tint with a right label;
what a model is least sure of is a wrong label, or an ambiguous digit. The validation labels are right. A second
setting, where as many of them are wrong too, shows what the directions need: there most failures are wrong labels,
which CLIP tells from right ones by their shape, so the direction points at those.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from claims.common import World, grade_images, unusual
from claims.comparing import Comparison
from lightning_failures.digits.render import Split as Part
from lightning_failures.directions import FailureDirections, fit_failure_directions

__all__ = ["COMPARISONS", "run"]

SHORTCUT, NOISE = 0.8, 0.12

COMPARISONS = tuple(
    Comparison(f"average precision for the unusual tint, {words}", (validation, part), "decision value", "confidence")
    for validation, part, words in (
        ("right labels", "train", "training examples, 12 % of their labels wrong"),
        ("right labels", "test", "test examples, after training with 12 % wrong labels"),
        ("wrong labels too", "train", "training examples, 12 % of validation labels wrong too"),
        ("wrong labels too", "test", "test examples, 12 % of validation labels wrong too"),
    )
)


def run(world: World) -> dict[str, Any]:
    """Both settings, on training examples and on test examples."""
    model, validation = world.base(SHORTCUT, NOISE), world.data("validation")
    logits = model.logits(validation.images)
    tables: dict[str, Any] = {}
    for name, noise in (("right labels", 0.0), ("wrong labels too", NOISE)):
        labels = world.labels("validation", SHORTCUT, noise)
        grades = grade_images(validation, labels, logits)
        directions = fit_failure_directions(
            world.embeddings("validation"),
            labels,
            grades.correct,
            groups=grades.groups,
            permutations=0,
            seed=world.seed,
        )
        tables[name] = {
            "train": _precision(world, directions, "train", world.labels("train", SHORTCUT, NOISE)),
            "test": _precision(world, directions, "test", world.data("test").labels),
        }
    return tables | {"accuracy": world.judge(model, SHORTCUT)}


def _precision(world: World, directions: FailureDirections, part: Part, labels: Tensor) -> dict[str, float]:
    """Mean over the planted classes of the average precision of both orders within a class."""
    data = world.data(part, SHORTCUT)
    confidence = torch.softmax(world.base(SHORTCUT, NOISE).logits(data.images), dim=1)
    orders = {
        "decision value": directions.decision_values(world.embeddings(part, SHORTCUT), labels),
        "confidence": confidence[torch.arange(len(labels)), labels],
    }
    wanted = unusual(data)[0] & (labels == data.labels)
    found: dict[str, list[float]] = {name: [] for name in (*orders, "chance")}
    for k in directions.classes.tolist():
        mine = labels == k
        if data.truth[k] is not None:
            found["chance"].append(float(wanted[mine].float().mean()))
            for name, values in orders.items():
                found[name].append(float(average_precision_score(wanted[mine].numpy(), -values[mine].numpy())))
    return {name: float(np.mean(values)) for name, values in found.items()} | {"classes": len(found["chance"])}
