"""Arcs on the sphere: against rotations, and at their ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_failures.directions.decoding import decoding_targets, slerp
from lightning_failures.errors import ConfigurationError, DataError


def unit(seed: int, dim: int) -> torch.Tensor:
    vector = torch.randn(dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vector / vector.norm()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), dim=st.integers(2, 64), alpha=st.floats(0, 1))
def test_slerp__is_a_rotation_by_a_fraction_of_the_angle(seed, dim, alpha):
    a, b = unit(seed, dim), unit(seed + 1, dim)
    angle = torch.acos((a @ b).clamp(-1, 1))
    side = b - (a @ b) * a  # Gram-Schmidt: the plane in which it rotates
    side = side / side.norm()
    expected = a * torch.cos(alpha * angle) + side * torch.sin(alpha * angle)
    torch.testing.assert_close(slerp(a, b, alpha), expected.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(slerp(a, b, alpha), slerp(3 * b, 0.1 * a, 1 - alpha), atol=1e-5, rtol=0)


def test_slerp__ends_are_the_points_themselves():
    a, b = unit(0, 8), unit(1, 8)
    torch.testing.assert_close(slerp(a, b, 0.0), a.float())
    torch.testing.assert_close(slerp(a, b, 1.0), b.float())
    torch.testing.assert_close(slerp(a, a, 0.5), a.float())


@pytest.mark.parametrize("angle", [1e-3, 1e-5, 1e-7, 1e-9, 0.0])
def test_slerp__nearly_equal_vectors(angle):
    a = torch.tensor([1.0, 0.0], dtype=torch.float64)
    b = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    assert slerp(a, b, 0.25)[1] == pytest.approx(angle / 4, rel=1e-4, abs=1e-12)


def test_slerp__rows_are_broadcast():
    ends = torch.stack([unit(seed, 4) for seed in range(3)])
    both = slerp(unit(9, 4), ends, 0.3)
    assert both.shape == (3, 4)
    assert both.dtype == torch.float32
    torch.testing.assert_close(both[1], slerp(unit(9, 4), ends[1], 0.3))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_slerp__alpha_out_of_range(alpha):
    with pytest.raises(ConfigurationError, match="alpha"):
        slerp(unit(0, 3), unit(1, 3), alpha)


def test_slerp__vectors_that_name_no_arc():
    with pytest.raises(DataError, match="opposite"):
        slerp(unit(0, 3), -unit(0, 3), 0.5)
    with pytest.raises(DataError, match="end has no direction"):
        slerp(unit(0, 3), torch.zeros(3), 0.5)
    with pytest.raises(DataError, match="start has no direction"):
        slerp(torch.tensor([float("nan"), 1.0]), torch.ones(2), 0.5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0.05, 1))
def test_decoding_targets__hard_lies_where_the_svm_says_failure(seed, alpha):
    reference, weight = unit(seed, 16), 5 * unit(seed + 1, 16)
    targets = decoding_targets(reference, weight, alpha=alpha)
    hard, middle, easy = (float(target.double() @ weight) for target in (targets.hard, targets.reference, targets.easy))
    assert hard < middle < easy
    torch.testing.assert_close(targets.hard, decoding_targets(reference, -weight, alpha=alpha).easy)
    whole = torch.acos((reference @ -weight / 5).clamp(-1, 1))
    gone = torch.acos((targets.hard.double() @ reference).clamp(-1, 1))
    assert float(gone) == pytest.approx(alpha * float(whole), abs=1e-3)


def test_decoding_targets__shapes():
    with pytest.raises(DataError, match="same length"):
        decoding_targets(torch.ones(3), torch.ones(4))
    with pytest.raises(DataError, match="same length"):
        decoding_targets(torch.ones(1, 3), torch.ones(1, 3))
