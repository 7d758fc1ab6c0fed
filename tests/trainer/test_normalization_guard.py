"""A normalisation that images do not have is noticed; dark, bright and flat images are no reason for doubt."""

import pytest
import torch

from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.normalization_guard import NORMALIZATIONS, normalization_doubt

DECLARED = {name: ImageSpace(*values) for name, values in NORMALIZATIONS.items() if name != "none"}


def pictures(size=16, *, eight_bits=True, low=0.0, high=1.0, channels=3):
    images = low + (high - low) * torch.rand(size, channels, 12, 12, generator=torch.Generator().manual_seed(1))
    return (images * 255).round() / 255 if eight_bits else images


def normalised(images, space):
    mean, std = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (space.mean, space.std))
    return (images - mean) / std


@pytest.mark.parametrize("name", DECLARED)
@pytest.mark.parametrize("eight_bits", [True, False])
@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.3), (0, 0.02), (0.7, 1), (0.45, 0.55), (0, 0)])
def test_doubt__none_about_normalised_images(name, eight_bits, low, high):
    images = normalised(pictures(eight_bits=eight_bits, low=low, high=high), DECLARED[name])
    assert normalization_doubt(images, DECLARED[name]) is None


@pytest.mark.parametrize("name", DECLARED)
def test_doubt__images_of_8_bits_that_were_never_normalised(name):
    doubt = normalization_doubt(pictures(low=0, high=0.4), DECLARED[name])
    assert "on_after_batch_transfer" in doubt
    assert "normalization=" in doubt


@pytest.mark.parametrize("name", sorted(set(DECLARED) - {"values from 0 to 255"}))
def test_doubt__resized_images_that_were_never_normalised(name):
    assert "on_after_batch_transfer" in normalization_doubt(pictures(eight_bits=False), DECLARED[name])


@pytest.mark.parametrize("single", [pictures(1, eight_bits=False), pictures(7, eight_bits=False, low=0.5, high=0.7)])
def test_doubt__a_few_images_may_be_bright_everywhere(single):
    assert normalization_doubt(single, DECLARED["ImageNet's"]) is None


def test_doubt__another_normalisation():
    images = normalised(pictures(), DECLARED["ImageNet's"])
    doubt = normalization_doubt(images, ImageSpace((0.5,), (0.2,)))
    assert "ImageNet's" in doubt
    assert "on_after_batch_transfer" in doubt


@pytest.mark.parametrize(
    ("images", "space"),
    [
        ((pictures() * 255).to(torch.uint8), DECLARED["ImageNet's"]),
        (pictures(), ImageSpace()),
        (torch.zeros(0, 3, 8, 8), DECLARED["ImageNet's"]),
        (torch.zeros(4, 8), DECLARED["ImageNet's"]),
    ],
    ids=["bytes", "plain", "empty", "no images"],
)
def test_doubt__nothing_to_undo(images, space):
    assert normalization_doubt(images, space) is None
