"""Tests of the digests of images."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_failures.data.digests import UNKNOWN_DIGEST, image_digests
from lightning_failures.errors import DataError


@given(seed=st.integers(0, 2**32 - 1), mean=st.floats(-1, 1), std=st.floats(0.05, 2))
def test_digests__survive_a_normalisation_that_is_undone(seed, mean, std):
    pixels = torch.randint(256, (4, 3, 6, 5), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    undone = ((pixels / 255 - mean) / std) * std + mean
    assert image_digests(undone).tolist() == image_digests(pixels).tolist()


def test_digests__differ_by_one_pixel_and_by_shape():
    images = torch.zeros(2, 3, 4, 6)
    images[1, 0, 0, 0] = 1 / 255
    first, second = image_digests(images).tolist()
    assert first != second
    assert image_digests(torch.zeros(1, 3, 6, 4)).tolist() != [first]


def test_digests__do_not_depend_on_the_other_images_of_the_batch():
    images = torch.rand(5, 3, 4, 4)
    together = image_digests(images).tolist()
    assert together == [int(image_digests(image[None])) for image in images]
    assert all(digest >= 0 for digest in together)


def test_digests__of_images_that_are_not_finite_are_unknown():
    images = torch.rand(3, 1, 2, 2)
    images[1, 0, 0, 0] = float("nan")
    digests = image_digests(images)
    assert (digests == UNKNOWN_DIGEST).tolist() == [False, True, False]


def test_digests__of_no_images():
    assert image_digests(torch.empty(0, 3, 4, 4)).shape == (0,)


def test_digests__need_a_dimension_of_examples():
    with pytest.raises(DataError, match="shape"):
        image_digests(torch.zeros(3))
