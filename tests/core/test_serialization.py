"""Numbers that JSON should not hold, and does: Python reads NaN, Infinity, 1e999 and whole numbers of any length."""

from __future__ import annotations

import dataclasses
import math

import pytest

from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.errors import DataError


@dataclasses.dataclass(frozen=True)
class Numbers:
    maybe: float | None = None
    always: float = 0.0
    count: int = 0
    pair: tuple[float, float] | None = None
    counts: tuple[int, ...] = ()


def read(text):
    return from_jsonable(Numbers, read_json(text))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "null"])
def test_from_plain__a_number_that_is_not_finite_is_none_where_it_may_be(number):
    assert read(f'{{"maybe": {number}}}').maybe is None


@pytest.mark.parametrize("number", ["NaN", "null"])
def test_from_plain__undefined_is_nan_where_it_must_be_a_float(number):
    assert math.isnan(read(f'{{"always": {number}}}').always)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"always": 1e999}', "always must be finite"),
        ('{"pair": [0.5, -Infinity]}', r"pair\[1\] must be finite"),
        ('{"count": NaN}', "count must be int"),
        (f'{{"maybe": {10**400}}}', "maybe is too large"),
        (f'{{"count": {2**63}}}', "count must be an integer of at most 64 bits"),
        (f'{{"counts": [1, {-(10**400)}]}}', r"counts\[1\] must be an integer of at most 64 bits"),
    ],
)
def test_from_plain__what_no_field_can_hold_is_refused(text, where):
    with pytest.raises(DataError, match=where):
        read(text)


def test_from_plain__the_ends_of_64_bits():
    assert read(f'{{"counts": [{2**63 - 1}, {-(2**63)}]}}').counts == (2**63 - 1, -(2**63))
