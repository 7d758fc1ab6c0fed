import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_failures.errors import DataError
from lightning_failures.stats.intervals import benjamini_hochberg, difference_interval, share_intervals, wilson_interval


@given(st.lists(st.floats(0, 1), max_size=40))
def test_benjamini_hochberg__equals_scipys_adjusted_p_values(p_values):
    expected = stats.false_discovery_control(p_values) <= 0.05 if p_values else []
    adjusted = stats.false_discovery_control(p_values) if p_values else np.array([])
    if not np.isclose(adjusted, 0.05, rtol=1e-9).any():
        assert benjamini_hochberg(p_values).tolist() == list(expected)


def test_benjamini_hochberg__a_p_value_on_the_bound_is_significant():
    """Permutation p-values are ratios; 0.003 = 0.05 * 3 / 50 is on the bound of the third of 50 tests."""
    p_values = np.full(50, 0.9)
    p_values[:3] = (1 + 2) / (1 + 999)
    assert benjamini_hochberg(p_values).sum() == 3


def test_benjamini_hochberg__nan_is_no_test():
    assert benjamini_hochberg([float("nan"), 0.04, float("nan")]).tolist() == [False, True, False]
    assert benjamini_hochberg([]).tolist() == []


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_interval__equals_scipys(n, share):
    failures = round(n * share)
    interval = stats.binomtest(failures, n).proportion_ci(method="wilson")
    assert wilson_interval(failures, n) == pytest.approx((interval.low, interval.high), abs=1e-6)


def test_wilson_interval__nothing_known_and_nonsense():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(DataError, match="between 0 and n"):
        wilson_interval(3, 2)


def test_share_intervals__each_example_its_own_source_is_wilsons():
    codes = np.array([0] * 7 + [1] * 3)
    assert share_intervals(codes, 2) == [wilson_interval(7, 10), wilson_interval(3, 10)]


def test_share_intervals__of_sources_that_agree_count_sources():
    codes, sources = np.repeat(np.arange(20) % 2, 5), np.repeat(np.arange(20), 5)
    (low, high), _ = share_intervals(codes, 2, sources)
    assert (low, high) == pytest.approx(wilson_interval(9.5, 19), abs=0.02)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((10, 10), (0, 10), (0.6075, 1.0000)),
        ((0, 20), (0, 10), (-0.2775, 0.1611)),
    ],
)
def test_difference_interval__newcombe_1998(first, second, expected):
    """Table II of the paper, method 10, examples (a), (b), (h) and (e)."""
    (a, m), (b, n) = first, second
    found = difference_interval(a / m, wilson_interval(a, m), b / n, wilson_interval(b, n))
    assert found == pytest.approx(expected, abs=6e-5)
