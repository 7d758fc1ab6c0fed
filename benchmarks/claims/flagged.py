"""Flagged images are the hard subpopulation more often than the least confident ones (Fig. 2).

A share of the training labels is wrong. What should come first within a class is the unusual tint with a right label;
what a model is least sure of is a wrong label, or an ambiguous digit. The validation labels are right. Two additional
settings show what the directions need: where as many of the validation labels are wrong, most failures are wrong
labels, which CLIP separates from right ones by their shape, so that the direction points at those; and where the
suspected ones among them are left out of the fit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from claims.common import World, grade_images, unusual
from claims.comparing import Comparison
from lightning_failures.bundled.digits.render import DigitSplit as Part
from lightning_failures.data.grades import Grades
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.interventions.label_errors import suspect_labels

__all__ = ["COMPARISONS", "run"]

SHORTCUT, NOISE = 0.8, 0.12

COMPARISONS = tuple(
    Comparison(f"average precision for the unusual tint, {words}", (validation, part), "decision value", "confidence")
    for validation, part, words in (
        ("right labels", "train", "training examples, 12 % of their labels wrong"),
        ("right labels", "test", "test examples, after training with 12 % wrong labels"),
        ("wrong labels too", "train", "training examples, 12 % of validation labels wrong too"),
        ("wrong labels too", "test", "test examples, 12 % of validation labels wrong too"),
        ("wrong labels too, triaged", "train", "training examples, the same without suspected validation labels"),
        ("wrong labels too, triaged", "test", "test examples, the same without suspected validation labels"),
    )
)


def run(world: World) -> dict[str, Any]:
    """Every setting, on training examples and on test examples."""
    wrong = world.labels("validation", SHORTCUT, NOISE)
    grades = _grades(world, wrong)
    found = suspect_labels(world.embeddings("validation"), wrong, grades.predictions, groups=grades.groups)
    everything = torch.ones(len(wrong), dtype=torch.bool)
    tables: dict[str, Any] = {}
    for name, labels, rows in (
        ("right labels", world.data("validation").labels, everything),
        ("wrong labels too", wrong, everything),
        ("wrong labels too, triaged", wrong, ~found.suspect),
    ):
        directions = _directions(world, labels, rows)
        tables[name] = {
            "train": _precision(world, directions, "train", world.labels("train", SHORTCUT, NOISE)),
            "test": _precision(world, directions, "test", world.data("test").labels),
        }
    flipped = wrong != world.data("validation").labels
    tables["suspected"] = {
        "of the wrong labels": float(found.suspect[flipped].float().mean()),
        "of the right labels": float(found.suspect[~flipped].float().mean()),
    }
    return tables | {"accuracy": world.judge(world.base(SHORTCUT, NOISE), SHORTCUT)}


def _grades(world: World, labels: Tensor) -> Grades:
    """Of the validation set, by these labels."""
    data = world.data("validation")
    return grade_images(data, labels, world.base(SHORTCUT, NOISE).logits(data.images))


def _directions(world: World, labels: Tensor, rows: Tensor) -> FailureDirections:
    """Fitted to these rows (N,) bool of the validation set."""
    grades = _grades(world, labels)
    groups = torch.as_tensor(world.data("validation").groups)
    return fit_failure_directions(
        world.embeddings("validation")[rows],
        labels[rows],
        grades.correct[rows],
        groups=groups[rows],
        permutations=0,
        seed=world.seed,
    )


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
