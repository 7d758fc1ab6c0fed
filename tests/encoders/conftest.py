"""A tiny CLIP model and a batch of images."""

import pytest
import torch

from lightning_failures.encoders import OpenCLIPEncoder
from tests.encoders.tiny import Net, seeded, write_clip


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.fixture(scope="module")
def clip(clip_folder):
    return OpenCLIPEncoder(f"local-dir:{clip_folder}")


@pytest.fixture
def images():
    return torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def net():
    net = seeded(Net)
    net.train()
    net.stem[1].eval()  # frozen by its owner
    return net
