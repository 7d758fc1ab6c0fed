import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_failures.errors import DataError
from lightning_failures.stats.intervals import (
    benjamini_hochberg,
    difference_interval,
    mean_interval,
    paired_difference_interval,
    share_intervals,
    wilson_interval,
)


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


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),  # a negative correlation
        ((1, 1, 7, 12), (-0.5069, -0.0256)),  # a positive one, corrected
        ((0, 0, 0, 50), (-0.0713, 0.0713)),  # none can be estimated
    ],
)
def test_paired_difference_interval__known(counts, expected):
    assert paired_difference_interval(*counts) == pytest.approx(expected, abs=6e-5)


@pytest.mark.parametrize("counts", [(36, 12, 2, 0), (5, 10, 9, 3), (20, 2, 4, 14), (1, 1, 7, 12)])
def test_paired_difference_interval__from_the_correlation_of_the_flags(counts):
    """The formula of the paper over the flags themselves; a positive correlation is corrected by n / 2."""
    a, b, c, d = counts
    n = sum(counts)
    one, other = np.repeat([1, 1, 0, 0], counts), np.repeat([1, 0, 1, 0], counts)
    phi = np.corrcoef(one, other)[0, 1]
    if phi > 0:
        phi *= max(a * d - b * c - n / 2, 0) / (a * d - b * c)
    ends = [stats.binomtest(int(flags.sum()), n).proportion_ci(method="wilson") for flags in (one, other)]
    down, up = one.mean() - ends[0].low, ends[1].high - other.mean()
    low = one.mean() - other.mean() - np.sqrt(down**2 - 2 * phi * down * up + up**2)
    down, up = other.mean() - ends[1].low, ends[0].high - one.mean()
    high = one.mean() - other.mean() + np.sqrt(down**2 - 2 * phi * down * up + up**2)
    assert paired_difference_interval(*counts) == pytest.approx((low, high), abs=1e-6)


@given(*[st.integers(0, 40)] * 4)
def test_paired_difference_interval__holds_the_difference_and_turns_with_it(a, b, c, d):
    low, high = paired_difference_interval(a, b, c, d)
    assert -1 <= low <= high <= 1
    if a + b + c + d:
        assert low - 1e-12 <= (b - c) / (a + b + c + d) <= high + 1e-12
    assert paired_difference_interval(a, c, b, d) == pytest.approx((-high, -low))


def test_paired_difference_interval__coverage():
    rng = np.random.default_rng(0)
    covered = []
    for first, second, n in [(0.9, 0.9, 20), (0.6, 0.2, 30), (0.5, 0.1, 40)]:
        for _ in range(400):
            shared = rng.random(n)  # the same number decides both: the strongest correlation
            one, other = shared < first, shared < second
            both, neither = int((one & other).sum()), int((~one & ~other).sum())
            only = int((one & ~other).sum()), int((other & ~one).sum())
            low, high = paired_difference_interval(both, *only, neither)
            covered.append(low <= first - second <= high)
    assert np.mean(covered) >= 0.93


def test_mean_interval__is_students_and_needs_two_values():
    values = [0.1, 0.4, 0.35, 0.2]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert mean_interval(values) == pytest.approx((expected.low, expected.high))
    assert mean_interval([0.5]) is None
