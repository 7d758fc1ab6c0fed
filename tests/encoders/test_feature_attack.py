"""Feature attacks: networks so small that the answer is worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_failures.core.budget import Deadline
from lightning_failures.encoders.feature_attack import ITERATIONS, RADIUS, STEP, attack_scale, feature_attack
from lightning_failures.errors import DataError

W = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]])  # two linear features of four pixels
HALF = torch.full((1, 1, 2, 2), 0.5)


def linear(x):
    return x.flatten(1) @ W.T


def test_feature_attack__goes_along_the_gradient_and_ends_on_the_sphere():
    moved = feature_attack(linear, HALF, 0, iterations=10, step=0.1, radius=0.25)
    # the direction is (3, 4) / 5, its length that of the ball
    assert torch.allclose(moved.flatten(), torch.tensor([0.5 + 0.6 * 0.25, 0.5 + 0.8 * 0.25, 0.5, 0.5]), atol=1e-6)


def test_feature_attack__each_step_has_its_length():
    moved = feature_attack(linear, HALF, 0, iterations=2, step=0.1, radius=9.0)
    assert torch.allclose(moved.flatten(), torch.tensor([0.5 + 0.12, 0.5 + 0.16, 0.5, 0.5]), atol=1e-6)


def test_feature_attack__ends_in_the_corner_of_the_box():
    moved = feature_attack(linear, HALF, 0, iterations=50, step=0.1, radius=9.0)
    assert moved.flatten().tolist() == [1.0, 1.0, 0.5, 0.5]
    assert feature_attack(linear, HALF, 1, iterations=50, step=0.1, radius=9.0).flatten().tolist() == [0.5, 0.5, 0, 0.5]


def test_feature_attack__several_features_share_a_batch():
    images = HALF.repeat(2, 1, 1, 1)
    together = feature_attack(linear, images, torch.tensor([0, 1]), iterations=5, step=0.1, radius=0.3)
    for row, feature in enumerate((0, 1)):
        alone = feature_attack(linear, HALF, feature, iterations=5, step=0.1, radius=0.3)
        assert torch.equal(together[row], alone[0])


def test_feature_attack__a_feature_that_does_not_answer_leaves_the_image():
    assert torch.equal(feature_attack(lambda x: torch.relu(-x.flatten(1)), HALF, 0, iterations=3), HALF)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_feature_attack__gradients_that_are_not_finite_are_not_followed(bad):
    moved = feature_attack(lambda x: x.flatten(1) * torch.tensor([bad, 1.0, 1.0, 1.0]), HALF, 0, iterations=3)
    assert torch.equal(moved, HALF)


def test_feature_attack__the_papers_lengths_are_scaled_with_the_root_of_the_pixels():
    steps = []

    def features(x):
        steps.append(x.detach().clone())
        return x.flatten(1)

    image = torch.zeros(1, 3, 32, 32)
    feature_attack(features, image, 0, iterations=ITERATIONS)
    assert float((steps[1] - steps[0]).norm()) == pytest.approx(STEP * 32 / 224)
    assert attack_scale(32, 32) * RADIUS == pytest.approx(500 * 32 / 224)
    assert attack_scale(448, 448) == 1.0
    steps.clear()
    feature_attack(features, image, 0, iterations=50)  # fewer are longer, so that they go as far
    assert float((steps[1] - steps[0]).norm()) == pytest.approx(min(1.0, 10 * STEP * 32 / 224))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    radius=st.floats(1e-3, 5.0),
    step=st.floats(1e-3, 2.0),
    channels=st.sampled_from([1, 3]),
)
def test_feature_attack__never_leaves_the_ball_or_the_box_and_is_deterministic(seed, radius, step, channels):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, channels, 5, 4, generator=generator)
    weight = torch.randn(channels * 20, 6, generator=generator)
    before = images.clone()

    def attack():
        return feature_attack(
            lambda x: torch.tanh(x.flatten(1) @ weight), images, 2, iterations=7, step=step, radius=radius
        )

    moved = attack()
    assert torch.equal(images, before)
    assert float((moved - images).flatten(1).norm(dim=1).max()) <= radius * (1 + 1e-4)
    assert 0 <= float(moved.min()) <= float(moved.max()) <= 1
    assert torch.equal(attack(), moved)


def test_feature_attack__raises_the_feature_of_a_network():
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = torch.rand(4, 3, 8, 8, generator=generator)
    state = torch.random.get_rng_state()
    moved = feature_attack(net, images, 1, iterations=20, step=0.2, radius=2.0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (net(moved)[:, 1] > net(images)[:, 1]).all()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("door", [torch.no_grad, torch.inference_mode])
def test_feature_attack__behind_either_door(door):
    expected = feature_attack(linear, HALF, 0, iterations=3, step=0.1, radius=9.0)
    with door():
        images = HALF + 0  # made inside: under inference_mode it cannot be differentiated
        moved = feature_attack(linear, images, 0, iterations=3, step=0.1, radius=9.0)
        assert torch.is_grad_enabled() is False
    assert torch.equal(moved, expected)
    assert not moved.requires_grad
    assert not moved.is_inference()


def test_feature_attack__half_an_attack_is_none():
    calls = []
    assert feature_attack(linear, HALF, 0, deadline=Deadline.after(-1), on_step=lambda: calls.append(1)) is None
    assert calls == []
    assert (
        feature_attack(linear, HALF, 0, iterations=3, deadline=Deadline.after(60), on_step=lambda: calls.append(1))
        is not None
    )
    assert len(calls) == 3


def test_feature_attack__no_images():
    assert feature_attack(linear, HALF[:0], 0).shape == (0, 1, 2, 2)


@pytest.mark.parametrize(
    ("images", "feature", "match"),
    [
        (HALF[0], 0, "must be"),
        ((HALF * 255).to(torch.uint8), 0, "must be"),
        (HALF, 2, "has no feature 2-2"),
        (HALF, -1, "has no feature -1"),
    ],
)
def test_feature_attack__what_cannot_be_attacked(images, feature, match):
    with pytest.raises(DataError, match=match):
        feature_attack(linear, images, feature)
