"""Two looks at data, joined by the digests of their images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.data.grades import Grades
from lightning_failures.data.joining import ExampleKeys, has_digests, join_examples, rows_of


@st.composite
def looks(draw) -> ExampleKeys:
    ids = sorted(draw(st.sets(st.integers(0, 12), max_size=10)))
    digests = draw(st.lists(st.integers(-1, 5), min_size=len(ids), max_size=len(ids)))
    known = draw(st.integers(0, 5)) > 0
    return ExampleKeys(np.array(ids, dtype=np.int64), np.array(digests, dtype=np.int64) if known else None)


@given(looks(), looks())
def test_join__by_the_definition(one, other):
    rows, others = join_examples(one, other)
    assert sorted(set(rows.tolist())) == rows.tolist()
    assert len(set(others.tolist())) == len(others)
    if one.digests is None or other.digests is None:
        assert one.ids[rows].tolist() == other.ids[others].tolist() == sorted(set(one.ids) & set(other.ids))
        return
    pairs = list(zip(one.digests[rows].tolist(), other.digests[others].tolist(), strict=True))
    assert all(mine == its >= 0 for mine, its in pairs)
    # as many as both have, of each image
    have, has = (Counter(look.digests[look.digests >= 0].tolist()) for look in (one, other))
    assert Counter(mine for mine, _ in pairs) == have & has
    # equal ids come first
    ids = list(zip(one.ids[rows].tolist(), other.ids[others].tolist(), strict=True))
    for i in set(one.ids.tolist()) & set(other.ids.tolist()):
        if one.digests[one.ids == i][0] == other.digests[other.ids == i][0] >= 0:
            assert (i, i) in ids


@given(looks(), looks())
def test_join__is_the_same_the_other_way_round(one, other):
    there, back = join_examples(one, other), join_examples(other, one)
    assert set(zip(*map(np.ndarray.tolist, there), strict=True)) == set(
        zip(*map(np.ndarray.tolist, reversed(back)), strict=True)
    )


@given(looks())
def test_same_as__itself_only(one):
    copy = ExampleKeys(one.ids.copy(), None if one.digests is None else one.digests.copy())
    assert one.same_as(copy)
    assert not one.same_as(ExampleKeys(np.append(one.ids, 99), None))
    if one.digests is not None and len(one):
        assert not one.same_as(ExampleKeys(one.ids, one.digests + 1))
        assert not one.same_as(ExampleKeys(one.ids, None))


def test_rows_of__all_rows_of_an_example():
    """Two conditions of three examples; the images of ids 5 and 6 have changed places, that of id 9 is new."""
    ids = torch.tensor([5, 5, 6, 6, 9, 9])
    zeros = torch.zeros(6).long()
    grades = Grades(ids, zeros, zeros, torch.ones(6), ("a", "b"), digests=torch.tensor([70, 70, 60, 60, 90, 90]))
    wanted = ExampleKeys(np.array([6, 9]), np.array([70, 99]))
    assert rows_of(wanted, grades).tolist() == [True, True, False, False, False, False]
    assert rows_of(ExampleKeys(wanted.ids), grades).tolist() == [False, False, True, True, True, True]
    assert has_digests(grades.digests)
    assert not has_digests(torch.full((3,), -1))
