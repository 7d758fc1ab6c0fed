"""Planted values are enriched, with the counts of an explicit loop; unusual and missing values are distinguished."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.analysis.enrichment import Attribute, enrichment, read_attribute
from lightning_failures.errors import DataError
from lightning_failures.stats.intervals import wilson_interval


def words(attribute):
    return [attribute.values[code] for code in attribute.codes]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["b", "a", "b"], ["b", "a", "b"]),
        (("b", None, "missing"), ["b", "missing", "missing"]),
        ([3, 10, 3], ["3", "10", "3"]),
        ([True, None, False], ["True", "missing", "False"]),
        ([1, None, 2], ["1", "missing", "2"]),
        ([1.0, math.nan], ["1", "missing"]),
        (["a", math.nan, 7], ["a", "missing", "7"]),
        ([None, None], ["missing", "missing"]),
        ([], []),
        (range(2), ["0", "1"]),
        (list(torch.tensor([2, -1])), ["2", "-1"]),
        (torch.tensor([2, -1]), ["2", "-1"]),
        (torch.tensor([True, False]), ["True", "False"]),
        (torch.tensor([1.0, float("nan")]), ["1", "missing"]),
        (np.array([0.5, 0.25, 0.5], dtype=np.float32), ["0.5", "0.25", "0.5"]),
        (np.array(["x", "y"]), ["x", "y"]),
        (np.array(["x", None, np.float64("nan")], dtype=object), ["x", "missing", "missing"]),
        (np.array([np.int64(4), np.bool_(True)], dtype=object), ["4", "1"]),
        (np.array([1, 2], dtype=np.uint8), ["1", "2"]),
    ],
)
def test_read_attribute__kinds_of_values(values, expected):
    attribute = read_attribute(values, "a")
    assert words(attribute) == expected
    assert attribute.codes.dtype == np.int64


def test_read_attribute__natural_order_with_missing_last():
    assert read_attribute([10, None, 9], "a").values == ("9", "10", "missing")
    assert read_attribute(["m", None, "n"], "a").values == ("m", "n", "missing")


def test_read_attribute__the_most_frequent_values_are_kept():
    values = [k for k in range(30) for _ in range(k + 1)] + [None]
    attribute = read_attribute(values, "a", most_values=4)
    assert attribute.values == ("26", "27", "28", "29", "other (26 values)", "missing")
    assert np.bincount(attribute.codes).tolist() == [27, 28, 29, 30, sum(range(1, 27)), 1]


def test_read_attribute__read_once():
    attribute = read_attribute(["a"], "a")
    assert read_attribute(attribute, "a") is attribute


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.zeros((2, 2)), r"must have shape \(N,\)"),
        ([[1, 2], [3, 4]], r"must have shape \(N,\)"),
        ([[1], [2, 3]], "got a list"),
        ({"a": 1}, r"must have shape \(N,\)"),
        ("word", r"must have shape \(N,\)"),
        ([1, object()], "got a object"),
        (np.linspace(0, 1, 50), "50 distinct fractions.*Bin them"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "strings or booleans, got"),
        (np.array([1j]), "got dtype complex128"),
    ],
)
def test_read_attribute__says_what_is_wrong(values, message):
    with pytest.raises(DataError, match=message):
        read_attribute(values, "when")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans(), st.integers(0, 3)), min_size=1, max_size=40))
def test_enrichment__equals_an_explicit_loop(rows):
    code, failed, flagged, doubt = (np.array(column) for column in zip(*rows, strict=True))
    confidence = doubt / 4
    attribute = Attribute(code.astype(np.int64), tuple("abcde"))
    table = {row.value: row for row in enrichment({"letter": attribute}, failed, confidence, flagged)}
    assert list(table) == sorted({"abcde"[c] for c in code})
    doubtful = sorted(range(len(rows)), key=lambda i: (confidence[i], i))[: flagged.sum()]
    for value, row in table.items():
        mine = code == "abcde".index(value)
        counts = (mine.sum(), (mine & failed).sum(), (mine & flagged).sum(), mine[doubtful].sum())
        assert (row.examples, row.failures, row.flagged, row.least_confident) == counts
        assert row.share == pytest.approx(mine.mean())
        assert row.share_of_failures == (pytest.approx(mine[failed].mean()) if failed.any() else None)
        assert row.share_of_flagged == (pytest.approx(mine[flagged].mean()) if flagged.any() else None)
        assert row.share_of_least_confident == (pytest.approx(mine[doubtful].mean()) if flagged.any() else None)
        if flagged.any():
            expected = wilson_interval(int(counts[2]), int(flagged.sum()))
            assert row.share_of_flagged_interval == pytest.approx(expected)


def test_enrichment__without_directions_nothing_is_flagged():
    (row,) = enrichment({"a": read_attribute([1, 1], "a")}, [True, False], [0.1, 0.2])
    assert (row.examples, row.failures, row.share_of_failures) == (2, 1, 1.0)
    assert (row.flagged, row.least_confident, row.share_of_flagged, row.share_of_flagged_interval) == (None,) * 4


def test_enrichment__repeats_of_a_source_count_once():
    rng = np.random.default_rng(0)
    code, ones = rng.integers(0, 3, size=40), np.ones(40, dtype=bool)
    attribute = Attribute(code, ("a", "b", "c"))
    once = enrichment({"a": attribute}, ones, ones, ones, sources=np.arange(40))
    repeated = np.repeat(np.arange(40), 5)
    many = np.ones(200, dtype=bool)
    again = enrichment({"a": attribute[repeated]}, many, many, many, sources=repeated)
    for row, same in zip(once, again, strict=True):
        assert same.share_of_flagged == pytest.approx(row.share_of_flagged)
        width, narrow = np.ptp(row.share_of_flagged_interval), np.ptp(same.share_of_flagged_interval)
        assert narrow == pytest.approx(width, rel=0.02)
    naive = enrichment({"a": attribute[repeated]}, many, many, many)
    assert np.ptp(naive[0].share_of_flagged_interval) < 0.6 * np.ptp(once[0].share_of_flagged_interval)


def test_enrichment__one_source_gives_a_wide_interval():
    one = np.ones(50, dtype=bool)
    (row,) = enrichment({"a": Attribute(np.zeros(50, np.int64), ("x",))}, one, one, one, sources=np.zeros(50))
    assert row.share_of_flagged_interval == wilson_interval(1, 1)


def test_enrichment__intervals_cover_a_known_share_also_of_clustered_examples():
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        sources = rng.integers(0, 60, size=150)
        own = rng.random(60) < 0.3  # half of the examples have the value of their source
        code = np.where(rng.random(150) < 0.5, own[sources], rng.random(150) < 0.3).astype(np.int64)
        attribute, ones = Attribute(code, ("no", "yes")), np.ones(150, dtype=bool)
        low, high = enrichment({"a": attribute}, ones, ones, ones, sources=sources)[-1].share_of_flagged_interval
        covered.append(low <= 0.3 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_enrichment__lengths_must_match():
    with pytest.raises(DataError, match=r"metadata\['a'\] has 1 values for 2 examples"):
        enrichment({"a": read_attribute([1], "a")}, [True, False], [0.1, 0.2])
