"""What is asked."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.errors import DataError
from lightning_failures.studies.sampling import matchings, simulations, spread_classes
from tests.studies.planted import planted


def probability(data, row, k):
    logits = data.features[row] @ data.sparse[0].T
    return np.exp(logits - logits.max())[k] / np.exp(logits - logits.max()).sum()


def test_simulations__the_right_image_has_the_highest_probability():
    data = planted()
    found = simulations(*data.sparse, data.features, count=13, seed=3)
    assert len(found) == 13
    assert np.bincount([one.class_index for one in found]).min() >= 2  # each class about as often
    for one in found:
        values = [probability(data, row, one.class_index) for row in one.options]
        assert int(np.argmax(values)) == one.right
        assert (data.sparse[0][one.class_index, one.features] != 0).all()
        assert one.shown.shape == (5, 5)
        assert not np.isin(one.shown, one.options).any()
        for feature, rows in zip(one.features, one.shown, strict=True):
            assert data.features[rows, feature].min() >= np.quantile(data.features[:, feature], 0.97)
    again = simulations(*data.sparse, data.features, count=13, seed=3)
    assert all((a.options == b.options).all() for a, b in zip(found, again, strict=True))
    assert {one.right for one in found} == {0, 1, 2}


def test_simulations__a_negative_weight_shows_the_least_active_images():
    data = planted()
    weight = -data.sparse[0]
    for one in simulations(weight, data.sparse[1], data.features, count=3):
        assert (one.weights < 0).all()
        for feature, rows in zip(one.features, one.shown, strict=True):
            assert data.features[rows, feature].max() <= np.quantile(data.features[:, feature], 0.03)


def test_simulations__what_is_missing_is_named():
    data = planted()
    with pytest.raises(DataError, match="at least 30 images"):
        simulations(*data.sparse, data.features[:20], count=3)
    with pytest.raises(DataError, match="nothing to simulate"):
        simulations(0 * data.sparse[0], data.sparse[1], data.features, count=3)
    with pytest.raises(DataError, match="uses at least 3 features, got 0"):
        matchings(0 * data.sparse[0], data.features, data.labels, [1], [2], count=1)


def test_matchings__three_patterns_without_the_image_itself():
    data = planted()
    errors = np.arange(40)
    found = matchings(data.sparse[0], data.features, data.labels, errors, errors % 50, count=9, seed=1)
    assert len({one.row for one in found}) == 9
    for one in found:
        worst, best, random = one.features.tolist()
        assert worst == one.row % 50
        assert data.sparse[0][data.labels[one.row], best] != 0 or best != worst
        assert random not in (worst, best)
        assert one.row not in one.shown


def test_spread_classes__of_many_classes():
    found = spread_classes(np.linspace(0, 1, 100), 5)
    assert sorted(found.tolist()) == [*range(5), *range(48, 53), *range(95, 100)]
