"""A small trained network for all parts: three coloured digits, whose tint training gives away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from torch import nn
from torch.utils.data import Subset

from lightning_failures.bundled.digits.data import _MEAN, _STD, ColouredDigits
from lightning_failures.encoders import load_encoder
from lightning_failures.recipes import network
from lightning_failures.recipes.base import Materials, Pool, Schedule, Setting, Sweep
from lightning_failures.recipes.measure import train

CLASSES = 3


def tiny_network(classes: int, size: int, architecture: str = "resnet18") -> nn.Module:
    """A network that trains in a second, with the names of ResNet's last layers."""
    net = nn.Sequential()
    for k, channels in enumerate((3, 12)):
        net.append(nn.Sequential(nn.Conv2d(channels, 12 * (k + 1), 3, stride=2, padding=1), nn.ReLU()))
    net.add_module("avgpool", nn.AdaptiveAvgPool2d(2))
    net.append(nn.Flatten())
    net.add_module("fc", nn.Linear(96, classes))
    return net


def digits(split: str, size: int, shortcut: float = 0.95):
    """Images of the first digits, and which of them show the unusual tint."""
    data = ColouredDigits(split, size=size, shortcut=shortcut)
    rows = np.flatnonzero(data.labels.numpy() < CLASSES)
    unusual = [(data.truth[int(data.labels[k])] or {}).get("unusual_tint") == data.tint[k] for k in rows]
    return Subset(data, rows.tolist()), np.array(unusual)


def digits_setting(shortcut: float = 0.95) -> Setting:
    """Three digits with a shortcut of the tint."""
    parts = {name: digits(split, size, shortcut) for name, split, size in (
        ("train", "train", 900), ("validation", "validation", 900), ("test", "test", 500), ("pool", "validation", 400))
    }  # fmt: skip
    (pool, hard_in_pool), (test, hard_in_test) = parts["pool"], parts["test"]
    return Setting(
        train=parts["train"][0], validation=parts["validation"][0], test=test, class_names=("zero", "one", "two"),
        schedule=Schedule(epochs=4, learning_rate=0.1, peak_epoch=1, batch_size=32), size=32,
        statistics=(_MEAN, _STD), captions="digits", hard_in_test=hard_in_test, complete=False,
        pool=Pool(pool, pool, 10, hard_in_pool), sweep=Sweep("strength", (0.5, 0.8, 0.98), digits_setting),
    )  # fmt: skip


@pytest.fixture(scope="session")
def _small_networks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "network", tiny_network)
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory, _small_networks):
    """The trained network with its analysis; the packaged models of the digits generate and decode."""
    output: Path = tmp_path_factory.mktemp("parts")
    found, _ = train(
        digits_setting(), seed=0, encoder=load_encoder("embedded:digits"), output=output, epochs=None, workers=0,
        materials=Materials(generator="embedded:digits", decoder="embedded:digits"), quick=True,
    )  # fmt: skip
    return found


@pytest.fixture(autouse=True)
def _networks(_small_networks):
    """Train small networks in the tests of all parts."""


def pytest_collection_modifyitems(items):
    """Leave the warnings of Lightning about small data aside."""
    for item in items:
        if "recipes/parts" in str(item.path):
            item.add_marker(pytest.mark.filterwarnings("ignore:.*does not have many workers.*"))
