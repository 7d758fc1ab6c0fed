from itertools import permutations

import numpy as np
import pytest

from lightning_failures.stats.sequential import SequentialTest, enough_of


@pytest.mark.parametrize("enough", [1, 2, 3, 6])
@pytest.mark.parametrize("block", [1, 2, 5])
def test_p_value__has_its_exact_distribution(enough, block):
    """Of all orders of six exchangeable statistics, the first one observed, a share v has p <= v."""
    found = []
    for order in permutations(range(6)):
        extreme = np.array(order[1:]) > order[0]
        test = SequentialTest(enough)
        for start in range(0, 5, block):
            if test.add(extreme[start : start + block]):
                break
        found.append(test.p_value)
    for value in np.unique(found):
        assert (np.array(found) <= value).mean() == pytest.approx(value)
    assert len(np.unique(found)) == 6  # as many as a test that never stops has


def test_add__counts_to_the_last_that_is_needed():
    test = SequentialTest(3)
    assert not test.add(np.array([True, False, True]))
    assert test.p_value == 3 / 4
    assert test.add(np.array([False, True, True, True]))
    assert test.p_value == 3 / 5
    assert test.add(np.ones(9, dtype=bool))
    assert test.p_value == 3 / 5
    assert SequentialTest().p_value == 1


@pytest.mark.parametrize("permutations", [19, 999, 1000, 1999, 20_000])
def test_enough_of__stops_above_5_percent_only(permutations):
    test = SequentialTest(enough_of(permutations))
    latest = np.arange(permutations) >= permutations - enough_of(permutations)
    test.add(latest)
    assert test.p_value > 0.05
