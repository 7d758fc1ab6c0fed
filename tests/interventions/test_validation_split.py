"""Parts of the validation set: disjoint, stable, whole groups; headline numbers of a part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.core.hashing import stable_hash
from lightning_failures.data.grades import Grades
from lightning_failures.interventions.validation_split import (
    Part,
    in_report_part,
    part_of,
    report_numbers,
    take_grades,
)


def grades(ids, groups=None) -> Grades:
    ids = torch.as_tensor(ids)
    zeros = torch.zeros(len(ids), dtype=torch.int64)
    return Grades(ids, zeros, zeros, zeros.float(), ("a",), groups=None if groups is None else torch.as_tensor(groups))


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=200, unique=True), st.integers(0, 99), st.booleans())
def test_parts__disjoint_complete_stable_and_whole(ids, seed, decision):
    groups = [i // 3 for i in ids]
    parts = part_of(grades(ids, groups), seed=seed, decision=decision)
    assert set(parts.tolist()) <= {Part.DISCOVERY, Part.REPORT, Part.DECISION} - (
        {Part.DECISION} if not decision else set()
    )
    told = dict(zip(groups, parts.tolist(), strict=True))
    assert [told[g] for g in groups] == parts.tolist()
    half = len(ids) // 2 + 1
    assert part_of(grades(ids[:half], groups[:half]), seed=seed, decision=decision).tolist() == parts[:half].tolist()
    assert (in_report_part(grades(ids, groups), seed=seed, decision=decision) == (parts == Part.REPORT)).all()


@given(st.lists(st.integers(-(10**9), 10**12), min_size=1, max_size=50, unique=True), st.integers(0, 99))
def test_parts__halves_are_what_they_always_were(ids, seed):
    hashed = stable_hash(np.array(ids), seed + 0x5EED)
    expected = (hashed >> np.uint64(32)) % np.uint64(2) == 1
    np.testing.assert_array_equal(in_report_part(grades(ids), seed=seed).numpy(), expected)
    three = part_of(grades(ids), seed=seed, decision=True).numpy()
    np.testing.assert_array_equal(three != Part.DISCOVERY, expected)


def test_parts__half_three_tenths_a_fifth():
    shares = torch.bincount(part_of(grades(torch.arange(50_000)), decision=True)) / 50_000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.01)
    assert torch.bincount(part_of(grades(torch.arange(10)))).shape == (2,)


def test_numbers__of_either_part():
    rows = torch.arange(40)
    one = Grades(rows, rows % 2, torch.zeros(40).long(), torch.ones(40), ("cat", "dog"))
    told = report_numbers(one, torch.tensor([1, 2]), part="decision")
    assert told == {
        "decision/accuracy": 0.5,
        "decision/worst_class_accuracy": 0.0,
        "decision/flagged_error_rate": 0.5,
    }


def test_parts__halves_that_keep_groups_whole_and_stay():
    rows = torch.arange(4000)
    made = Grades(rows, rows % 3, rows % 2, torch.ones(4000), ("a", "b", "c"), groups=rows // 4)
    mask = in_report_part(made)
    assert 0.45 < mask.float().mean() < 0.55
    assert (mask.reshape(-1, 4).float().std(1) == 0).all()
    some = take_grades(made, rows % 5 == 0)
    assert torch.equal(in_report_part(some), mask[::5])
    assert not torch.equal(in_report_part(made, seed=1), mask)


def test_report_numbers__undefined_ones_are_absent():
    rows = torch.arange(9)
    made = Grades(rows, rows * 0, rows % 2, torch.ones(9), ("a", "b"))
    assert report_numbers(made, torch.tensor([99])) == {"report/accuracy": pytest.approx(5 / 9)}
    assert report_numbers(take_grades(made, rows < 0)) == {}
