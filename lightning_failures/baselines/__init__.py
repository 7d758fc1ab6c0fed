"""Other ways to find what a model fails on, to compare the package with.

Files, each importing only from those above it::

    answers   Hardness of examples from the answers of models alone
    losses    The loss of a twin that learns from easy examples first (Learning from Failure)
    clusters  k-means on the embeddings of failures
    domino    The error-aware mixture model (Domino)
    ranking   Rank the examples of each class by any of them, and compare what they rank first

All agree on one number for each example, its *hardness*: the larger, the more of a failure the method expects.
"""

from __future__ import annotations

from lightning_failures.baselines.answers import disagreement, margins
from lightning_failures.baselines.clusters import FailureClusters, fit_failure_clusters
from lightning_failures.baselines.domino import ErrorAwareMixture, fit_error_aware_mixture
from lightning_failures.baselines.losses import generalised_cross_entropy
from lightning_failures.baselines.ranking import RankingScore, compare_rankings, hardness_by_class, overlap_of_rankings

__all__ = [
    "ErrorAwareMixture",
    "FailureClusters",
    "RankingScore",
    "compare_rankings",
    "disagreement",
    "fit_error_aware_mixture",
    "fit_failure_clusters",
    "generalised_cross_entropy",
    "hardness_by_class",
    "margins",
    "overlap_of_rankings",
]
