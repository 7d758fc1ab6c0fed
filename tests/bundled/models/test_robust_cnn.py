from __future__ import annotations

import pytest
import torch

from lightning_failures.bundled.models import load_robust_cnn
from lightning_failures.errors import ConfigurationError
from scripts.bundled_models import train_clip

UNNAMED = train_clip.UNNAMED


@pytest.mark.parametrize("variant", ["robust", "plain", "untrained"])
def test_load_robust_cnn__maps_average_to_the_features(variant):
    state = torch.get_rng_state()
    model = load_robust_cnn(variant)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    images = torch.rand(2, 3, 32, 32)
    maps = model.features(images)
    assert maps.shape == (2, model.dim, 8, 8)
    digit, tint = model(images)
    assert torch.allclose(digit, model.digit(maps.mean(dim=(2, 3))), atol=1e-5)
    assert tint.shape == (2, 10)


def test_load_robust_cnn__variants_differ_and_untrained_is_always_the_same():
    images = torch.rand(1, 3, 32, 32)
    robust, plain, untrained, again = (
        load_robust_cnn(variant).features(images) for variant in ("robust", "plain", "untrained", "untrained")
    )
    assert torch.equal(untrained, again)
    assert not torch.allclose(robust, plain)
    assert not torch.allclose(robust, untrained)


def test_load_robust_cnn__unknown_variant():
    with pytest.raises(ConfigurationError, match="'robus'"):
        load_robust_cnn("robus")
