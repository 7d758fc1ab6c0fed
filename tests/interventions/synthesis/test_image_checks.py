"""Images that nothing should be trained on."""

from __future__ import annotations

import pytest
import torch

from lightning_failures.errors import GeneratorError
from lightning_failures.interventions.synthesis.image_checks import blank, near_copy, thumbnails, uint8_images
from tests.interventions.synthesis_tools import digits


def test_blank__black_constant_and_real():
    black = torch.zeros(3, 32, 32, dtype=torch.uint8)
    black[:, 0, 0] = 8
    assert blank(black) == "black"
    flat = torch.tensor([200, 30, 0], dtype=torch.uint8)[:, None, None].expand(3, 32, 32).clone()
    assert blank(flat) == "constant"
    flat[1, 3, 3] += 8
    assert blank(flat) == "constant"
    flat[1, 3, 3] += 20
    assert blank(flat) is None


def test_blank__no_digit_is():
    images = digits([k for k in range(10) for _ in range(10)], ["red", "yellow", "brown", "blue", "lime"] * 20)
    assert {blank(image) for image in images} == {None}


def test_near_copy__noise_is_a_copy_another_digit_is_none():
    images = digits([3] * 40, ["red"] * 40)
    small = thumbnails(images)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)) * 2.5
    noisy = thumbnails((images.float() + noise).clamp(0, 255).byte())
    assert all(near_copy(noisy[k], small) for k in range(40))
    assert sum(near_copy(small[k], small[:k]) for k in range(40)) == 0
    assert not near_copy(small[0], small[:0])


def test_thumbnails__any_size():
    assert thumbnails(torch.zeros(2, 3, 7, 50, dtype=torch.uint8)).shape == (2, 768)


@pytest.mark.parametrize(
    "images",
    [
        None,
        torch.zeros(2, 3, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 1, 8, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 8, dtype=torch.uint8),
        torch.zeros(2, 3, 0, 8, dtype=torch.uint8),
    ],
)
def test_uint8_images__breach_of_contract(images):
    with pytest.raises(GeneratorError, match=r"mine must give \(2, 3, H, W\) uint8"):
        uint8_images(images, 2, "mine")
