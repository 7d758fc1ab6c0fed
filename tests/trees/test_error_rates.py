import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.errors import DataError
from lightning_failures.trees.error_rates import average_leaf_error_rate, error_coverage, error_rate


def test_average_leaf_error_rate__by_hand():
    # leaf 7: 3 of 4 fail; leaf 2: 1 of 4; leaf 9: 0 of 2 -> 3/4 * 3/4 + 1/4 * 1/4
    leaf_ids = torch.tensor([7, 7, 7, 7, 2, 2, 2, 2, 9, 9])
    failed = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0, 0, 0], dtype=torch.bool)
    assert average_leaf_error_rate(leaf_ids, failed) == pytest.approx(0.625)
    assert error_rate(failed) == pytest.approx(0.4)
    assert error_coverage(leaf_ids == 7, failed) == pytest.approx(0.75)


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=60))
def test_average_leaf_error_rate__lies_between_the_base_rate_and_the_worst_leaf(rows):
    leaves, failed = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
    aler = average_leaf_error_rate(leaves, failed)
    if not failed.any():
        assert math.isnan(aler)
        return
    rates = [error_rate(failed[leaves == leaf]) for leaf in np.unique(leaves)]
    assert failed.mean() - 1e-12 <= aler <= max(rates) + 1e-12
    by_definition = sum(
        error_rate(failed[leaves == v]) * error_coverage(leaves == v, failed) for v in np.unique(leaves)
    )
    assert aler == pytest.approx(by_definition)


def test_average_leaf_error_rate__undefined_and_wrong():
    assert math.isnan(average_leaf_error_rate([], []))
    assert math.isnan(error_rate([]))
    assert math.isnan(error_coverage([True], [False]))
    assert average_leaf_error_rate([0, 1], [True, True]) == 1.0
    with pytest.raises(DataError, match="leaf_ids"):
        average_leaf_error_rate([0], [True, False])
