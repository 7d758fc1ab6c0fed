"""k-means on the embeddings of failures: the slice finder that most people try first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from lightning_failures.core.arrays import as_mask, as_rows
from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.errors import DataError


@dataclass(frozen=True, eq=False)
class FailureClusters:
    """Clusters of failures, the largest first.

    Attributes:
        centres: (S, D) float64.
        sizes: (S,) int64, failures in each, descending.
    """

    centres: FloatArray
    sizes: IntArray

    def hardness(self, embeddings: Any) -> FloatArray:
        """Return the negative distance to the centre of the largest cluster, (n,) float64."""
        x = as_rows(embeddings, "embeddings").astype(np.float64)
        return np.asarray(-np.linalg.norm(x - self.centres[0], axis=1))


def fit_failure_clusters(embeddings: Any, failed: Any, *, clusters: int = 3, seed: int = 0) -> FailureClusters:
    """Cluster the failures of one class by k-means (scikit-learn).

    Args:
        embeddings: (n, D) of the examples of the class.
        failed: (n,) bool.
        clusters: Number of clusters, or of failures if these are fewer.
        seed: Seed of the initial centres.

    Raises:
        DataError: There is no failure.

    >>> x = np.array([[0.0, 0], [0, 1], [0, 2], [9, 9], [5, 5]])
    >>> found = fit_failure_clusters(x, [True, True, True, True, False], clusters=2)
    >>> found.sizes.tolist(), int(found.hardness(x).argmax())
    ([3, 1], 1)
    """
    x = as_rows(embeddings, "embeddings").astype(np.float64)
    failures = x[as_mask(failed, "failed", len(x))]
    if not len(failures):
        raise DataError("There is no failure to cluster.")
    k_means = KMeans(min(clusters, len(failures)), n_init=10, random_state=seed).fit(failures)
    sizes = np.bincount(k_means.labels_, minlength=k_means.n_clusters)
    order = np.argsort(-sizes, kind="stable")
    return FailureClusters(k_means.cluster_centers_[order].astype(np.float64), sizes[order].astype(np.int64))
