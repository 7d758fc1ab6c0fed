"""Failure trees (Barlow: Singla et al., CVPR 2021): rules on robust features that hold the failures of a group.

Files, each importing only from those above it::

    error_rates       Error rate, error coverage and ALER: the numbers that a partition of a group of examples is
    information_gain  What a feature is worth to a failure tree: the information gain of its best split, exact, for
    growing           How a failure tree is grown: features chosen by information gain, scikit-learn's tree on
    cross_validation  What a failure tree is worth on data that did not grow it
    fit               Failure trees: a shallow decision tree whose leaves are rules for when a group of examples
    groups            The failure trees of an analysis: one for each label group and each prediction group
"""

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
