"""Failure trees (Barlow: Singla et al., CVPR 2021): rules on robust features that describe the failures of a group.

Files, each importing only from those above it::

    error_rates       Error rate, error coverage and average leaf error rate (ALER) of a partition of examples
    information_gain  Information gain of the best split of each feature, exact, and the best features
    growing           Selection of features, the decision tree on them, and rules as text
    cross_validation  Held-out score of a failure tree: ALER and intervals from folds that did not grow it
    fit               Failure trees: a shallow decision tree whose leaves are rules for when a group fails
    groups            The failure trees of an analysis: one for each label group and each prediction group
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_failures.core.moved import old_names
from lightning_failures.trees.error_rates import average_leaf_error_rate, error_coverage, error_rate
from lightning_failures.trees.fit import FailureTree, Leaf, fit_failure_tree
from lightning_failures.trees.information_gain import information_gain

__all__ = [
    "FailureTree",
    "Leaf",
    "average_leaf_error_rate",
    "error_coverage",
    "error_rate",
    "fit_failure_tree",
    "information_gain",
]

if not TYPE_CHECKING:
    __getattr__ = old_names(__name__)
