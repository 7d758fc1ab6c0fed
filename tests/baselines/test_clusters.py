"""k-means on failures: the largest cluster leads, few failures are enough for fewer clusters."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.baselines import fit_failure_clusters
from lightning_failures.errors import DataError


def test_clusters__largest_first_and_successes_do_not_count():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=(30, 2)), rng.normal(size=(10, 2)) + 20, rng.normal(size=(50, 2)) - 20])
    failed = np.arange(90) < 40
    found = fit_failure_clusters(x, failed, clusters=2)
    assert found.sizes.tolist() == [30, 10]
    np.testing.assert_allclose(found.centres[0], x[:30].mean(axis=0))
    assert found.hardness(x)[:30].min() > found.hardness(x)[30:].max()
    assert fit_failure_clusters(x, np.arange(90) < 2).sizes.tolist() == [1, 1]
    with pytest.raises(DataError, match="no failure"):
        fit_failure_clusters(x, np.zeros(90, bool))
