"""Digests of the images of a batch, and hashes of file names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from lightning_failures.data.digests import image_digests
from lightning_failures.trainer.example_names import digests_in, hashed_file_names
from lightning_failures.trainer.image_space import ImageSpace

PIXELS = torch.randint(0, 256, (5, 3, 6, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
SPACE = ImageSpace((0.48, 0.45, 0.41), (0.22, 0.21, 0.23))


def normalised(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (SPACE.mean, SPACE.std))
    return ((PIXELS / 255 - mean) / std).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_digests__of_the_image_whatever_its_normalisation(dtype):
    expected = image_digests(PIXELS)
    assert torch.equal(digests_in(PIXELS, SPACE), expected)
    assert torch.equal(digests_in(PIXELS / 255, ImageSpace()), expected)
    assert torch.equal(digests_in(normalised(dtype), SPACE), expected)
    assert torch.equal(torch.cat([digests_in(one[None], SPACE) for one in normalised(dtype)]), expected)
    assert len(set(expected.tolist())) == 5


@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), 9.0])
def test_digests__one_image_that_cannot_be_read_costs_no_other(spoilt):
    images = normalised()
    images[2, 1, 3, 3] = spoilt
    expected = image_digests(PIXELS)
    expected[2] = -1
    assert torch.equal(digests_in(images, SPACE), expected)


def test_digests__of_no_images_are_unknown():
    assert digests_in(torch.randn(4, 9), ImageSpace()).tolist() == [-1] * 4
    assert digests_in(torch.randn(1, 9), ImageSpace()).tolist() == [-1]
    assert digests_in(torch.randn(4, 3, 5, 5), ImageSpace()).tolist() == [-1] * 4  # a normalisation that is not known
    assert digests_in(torch.empty(0, 3, 5, 5), ImageSpace()).tolist() == []


class Folder:
    def __init__(self, root, names, attribute="samples"):
        self.root = root
        setattr(self, attribute, [(f"{root}/{name}", 0) for name in names])
        self.length = len(names)

    def __len__(self):
        return self.length


def test_file_names__are_relative_and_follow_subsets():
    here = Folder("/data/a", ["cat/1.png", "cat/2.png", "dog/1.png"])
    there = Folder(Path("/copy"), ["dog/1.png", "cat/2.png"], "imgs")
    one, other = (hashed_file_names(data, torch.arange(len(data))) for data in (here, there))
    assert one.dtype == torch.int64
    assert len(set(one.tolist())) == 3
    assert other.tolist() == [one[2], one[1]]
    assert hashed_file_names(Subset(here, [2, 0]), torch.tensor([0, 1])).tolist() == [one[2], one[0]]
    assert hashed_file_names(here, torch.tensor([1, 1])).tolist() == [one[1], one[1]]
    joined = ConcatDataset([here, Folder("/data/a", ["fox/1.png"])])
    assert hashed_file_names(joined, torch.arange(4))[:3].tolist() == one.tolist()


@pytest.mark.parametrize("listed", [None, "text", [1, 2, 3], ["a.png"], {"a": 1}])
def test_file_names__that_are_not_there(listed):
    data = Folder("/data", ["x"] * 3, "nothing")
    data.samples = listed
    assert hashed_file_names(data, torch.arange(3)) is None
    assert hashed_file_names(None, torch.arange(3)) is None
