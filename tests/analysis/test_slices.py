"""Slices by attribute: counts of an explicit loop, a planted slice leads, small and clustered ones do not by noise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.analysis.enrichment import Attribute, read_attribute
from lightning_failures.analysis.slices import MOST_SLICES, leading_slices, slices_of
from lightning_failures.stats.intervals import difference_interval, wilson_interval


def leading(*sets):
    return leading_slices(sets)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40))
def test_slices_of__equals_an_explicit_loop(rows):
    code, failed = (np.array(column) for column in zip(*rows, strict=True))
    attribute = Attribute(code.astype(np.int64), tuple("abcde"))
    found = {row.value: row for row in slices_of({"letter": attribute}, failed, class_name="cat")}
    if failed.any() and not failed.all():
        assert set(found) == {"abcde"[c] for c in code} if len(set(code)) > 1 else not found
    else:
        assert not found
    for value, row in found.items():
        mine = code == "abcde".index(value)
        k, n, k_out, n_out = (mine & failed).sum(), mine.sum(), (~mine & failed).sum(), (~mine).sum()
        inside, outside = wilson_interval(int(k), int(n)), wilson_interval(int(k_out), int(n_out))
        assert (row.attribute, row.class_name, row.examples, row.failures) == ("letter", "cat", n, k)
        assert (row.error_rate, row.error_rate_outside) == (pytest.approx(k / n), pytest.approx(k_out / n_out))
        assert row.gap == pytest.approx(k / n - k_out / n_out)
        assert row.interval == pytest.approx(inside)
        assert row.gap_interval == pytest.approx(difference_interval(k / n, inside, k_out / n_out, outside))
        at_least = range(k, min(n, k + k_out) + 1)
        ways = [math.comb(n, j) * math.comb(n_out, k + k_out - j) for j in at_least if k + k_out - j <= n_out]
        assert row.p_value == pytest.approx(sum(ways) / math.comb(n + n_out, k + k_out))


def test_slices_of__by_hand():
    tint = read_attribute(["cyan"] * 10 + ["yellow"] * 20, "tint")
    failed = np.array([True] * 7 + [False] * 3 + [True] + [False] * 19)
    cyan, yellow = slices_of({"tint": tint}, failed)
    assert (cyan.class_name, cyan.value, cyan.examples, cyan.failures) == (None, "cyan", 10, 7)
    assert (cyan.error_rate, cyan.error_rate_outside, yellow.error_rate) == (0.7, 0.05, 0.05)
    assert cyan.gap == pytest.approx(0.65)
    assert yellow.gap == pytest.approx(-0.65)
    assert cyan.p_value < 0.001 < 0.99 < yellow.p_value


def test_leading_slices__a_planted_slice_leads_and_one_that_only_looks_bad_does_not():
    rng = np.random.default_rng(0)
    n = 2000
    site = rng.integers(0, 5, n)
    site[:3] = 5  # three examples, all wrong
    failed = rng.random(n) < np.where(site == 2, 0.5, 0.2)
    failed[:3] = True
    attributes = {"site": Attribute(site, tuple("abcdef")), "noise": Attribute(rng.integers(0, 4, n), tuple("wxyz"))}
    (rows,) = leading(slices_of(attributes, failed))
    assert (rows[0].attribute, rows[0].value, rows[0].significant) == ("site", "c", True)
    assert max(rows, key=lambda row: row.gap).value == "f"
    assert not next(row for row in rows if row.value == "f").significant
    assert [row.gap_interval[0] for row in rows] == sorted((row.gap_interval[0] for row in rows), reverse=True)


def test_leading_slices__are_limited_after_the_test():
    rng = np.random.default_rng(0)
    codes, failed = rng.integers(0, 60, 6000), rng.random(6000) < 0.2
    values = tuple(f"v{k:02}" for k in range(60))
    every = slices_of({"many": Attribute(codes, values)}, failed)
    (rows,) = leading(every)
    assert (len(every), len(rows)) == (60, MOST_SLICES)


def false_alarms(sources_of, runs=200):
    """Return the share of null data, of ten classes with three attributes each, with a significant slice."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(runs):
        sets = []
        for _ in range(10):
            attributes, failed, sources = sources_of(rng)
            sets.append(slices_of(attributes, failed, sources=sources))
        alarms += any(row.significant for rows in leading(*sets) for row in rows)
    return alarms / runs


def test_leading_slices__of_null_data_are_rarely_significant():
    def independent(rng):
        values = {f"a{k}": Attribute(rng.integers(0, k + 2, 150), tuple("abcdef"[: k + 2])) for k in range(3)}
        return values, rng.random(150) < rng.uniform(0.05, 0.6), None

    assert false_alarms(independent) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)


@pytest.mark.parametrize("n_sources", [6, 15, 40])
@pytest.mark.slow
def test_leading_slices__of_sources_that_fail_together_are_rarely_significant(n_sources):
    def clustered(rng):
        sources = np.repeat(np.arange(n_sources), 8)
        failed = (rng.random(n_sources) < 0.3)[sources] ^ (rng.random(len(sources)) < 0.1)
        values = {
            "of the source": Attribute(rng.integers(0, 3, n_sources)[sources], tuple("abc")),
            "of the example": Attribute(rng.integers(0, 3, len(sources)), tuple("abc")),
        }
        return values, failed, sources

    assert false_alarms(clustered, runs=100) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 100)
    naive = false_alarms(lambda rng: (*clustered(rng)[:2], None), runs=20)
    assert naive > 0.2  # the test can fail


def test_leading_slices__of_sources_are_found():
    rng, found = np.random.default_rng(0), []
    for _ in range(40):
        sources, site = np.repeat(np.arange(80), 4), rng.integers(0, 4, 80)
        rate = np.clip(np.where(site == 1, 0.6, 0.2) + rng.normal(0, 0.1, 80), 0, 1)
        failed = rng.random(320) < rate[sources]
        (rows,) = leading(slices_of({"site": Attribute(site[sources], tuple("abcd"))}, failed, sources=sources))
        found.append(rows[0].value == "b" and rows[0].significant)
    assert np.mean(found) >= 0.9


def test_slices_of__repeats_of_a_source_count_once():
    rng = np.random.default_rng(0)
    code, failed = rng.integers(0, 2, 60), rng.random(60) < 0.4
    attribute, repeated = Attribute(code, ("a", "b")), np.repeat(np.arange(60), 5)
    once = slices_of({"a": attribute}, failed, sources=np.arange(60))
    again = slices_of({"a": attribute[repeated]}, failed[repeated], sources=repeated)
    for row, same in zip(once, again, strict=True):
        assert same.error_rate == pytest.approx(row.error_rate)
        assert np.ptp(same.gap_interval) == pytest.approx(np.ptp(row.gap_interval), rel=0.05)


def confounded(rng, *, n=600, effect=0.0):
    """A hard class in which most images are dark, and an easy one in which few are; darkness adds ``effect``."""
    labels = rng.integers(0, 2, n)
    dark = rng.random(n) < np.where(labels == 1, 0.8, 0.2)
    failed = rng.random(n) < np.where(labels == 1, 0.5, 0.1) + effect * dark
    return {"light": Attribute(dark.astype(np.int64), ("bright", "dark"))}, failed, labels


def test_adjusted_gap__by_hand():
    labels = np.repeat([0, 1, 2], [30, 20, 4])
    dark = np.concatenate([np.arange(30) < 10, np.arange(20) < 15, np.ones(4, bool)])
    failed = np.concatenate([np.arange(30) % 5 == 0, np.arange(20) % 2 == 0, np.ones(4, bool)])
    light = {"light": Attribute(dark.astype(np.int64), ("bright", "dark"))}
    row = next(row for row in slices_of(light, failed, labels=labels) if row.value == "dark")
    inside, outside = (2 + 8) / 25, (10 * 4 / 20 + 15 * 2 / 5) / 25  # the third class is dark throughout
    assert row.adjusted_gap == pytest.approx(inside - outside)
    assert row.gap == pytest.approx((2 + 8 + 4) / 29 - (4 + 2) / 25)
    assert row.adjusted_gap_interval[0] < row.adjusted_gap < row.adjusted_gap_interval[1]


def test_adjusted_gap__of_a_value_that_is_frequent_in_a_hard_class():
    rng = np.random.default_rng(0)
    covered, significant, raw_significant = [], [], []
    for _ in range(200):
        attributes, failed, labels = confounded(rng)
        ((row, *_),) = leading(slices_of(attributes, failed, labels=labels))
        (raw,) = (one for one in slices_of(attributes, failed) if one.value == "dark")
        low, high = next(
            one.adjusted_gap_interval for one in slices_of(attributes, failed, labels=labels) if one.value == "dark"
        )
        covered.append(low <= 0 <= high)
        significant.append(row.significant)
        raw_significant.append(raw.p_value < 0.05)
    assert np.mean(covered) >= 0.93
    assert np.mean(significant) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200)
    assert np.mean(raw_significant) > 0.9  # the test can fail


def test_adjusted_gap__finds_an_effect_within_classes_and_its_size():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(100):
        attributes, failed, labels = confounded(rng, effect=0.2)
        ((row, *_),) = leading(slices_of(attributes, failed, labels=labels))
        found.append((row.value == "dark" and row.significant, row.adjusted_gap))
    power, gap = np.mean(found, axis=0)
    assert power >= 0.9
    assert gap == pytest.approx(0.2, abs=0.02)


def test_adjusted_gap__sorts_the_slices():
    rng = np.random.default_rng(2)
    attributes, failed, labels = confounded(rng, n=4000)
    culprit = rng.random(4000) < 0.3
    failed |= culprit & (rng.random(4000) < 0.2)
    attributes["culprit"] = Attribute(culprit.astype(np.int64), ("no", "yes"))
    ((first, *_),) = leading(slices_of(attributes, failed, labels=labels))
    assert (first.attribute, first.value) == ("culprit", "yes")
    assert max(slices_of(attributes, failed, labels=labels), key=lambda row: row.gap).value == "dark"


def test_adjusted_gap__of_one_class_is_the_gap_and_of_a_value_per_class_undefined():
    rng = np.random.default_rng(3)
    attributes, failed, labels = confounded(rng)
    for row in slices_of(attributes, failed):
        assert row.adjusted_gap == pytest.approx(row.gap)
        assert row.adjusted_gap_interval == pytest.approx(row.gap_interval)
    for row in slices_of({"class": Attribute(labels, ("a", "b"))}, failed, labels=labels):
        assert (row.adjusted_gap, row.adjusted_gap_interval, row.p_value) == (None, (-1.0, 1.0), 1.0)


def test_adjusted_gap__p_value_is_that_of_the_mantel_haenszel_test():
    """By hand: two classes of (3 of 10, 1 of 10) and (8 of 10, 4 of 10)."""
    labels = np.repeat([0, 1], 20)
    dark = np.tile(np.arange(20) < 10, 2)
    failed = np.concatenate(
        [np.isin(np.arange(20), [0, 1, 2, 10]), np.isin(np.arange(20), [*range(8), *range(10, 14)])]
    )
    attributes = {"light": Attribute(dark.astype(np.int64), ("bright", "dark"))}
    row = next(row for row in slices_of(attributes, failed, labels=labels) if row.value == "dark")
    variance = 100 * (4 * 16 + 12 * 8) / (400 * 19)
    z = (11 - 2 - 6 - 0.5) / math.sqrt(variance)
    assert row.p_value == pytest.approx(0.5 * math.erfc(z / math.sqrt(2)))


def test_slices_of__nothing_to_compare():
    attribute = {"a": read_attribute(["x", "x", "y"], "a")}
    assert slices_of(attribute, [False] * 3) == ()
    assert slices_of(attribute, [True] * 3) == ()
    assert slices_of({"a": read_attribute(["x"] * 3, "a")}, [True, False, True]) == ()
    assert leading((), ()) == [(), ()]
