"""Networks are trained and asked as their setting says, and early weights are kept."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_failures.recipes.base import Schedule, Setting
from lightning_failures.recipes.training import KeepEarly, answer, batches, new_network, plain_images

DATA = TensorDataset(torch.arange(30.0).view(10, 3, 1, 1) / 30, torch.arange(10) % 2)
SETTING = Setting(
    DATA, DATA, DATA, ("a", "b"), Schedule(epochs=1, learning_rate=0.1, peak_epoch=1, batch_size=4), 8,
    ((0.25,) * 3, (0.5,) * 3),
)  # fmt: skip


def test_answers__labels_probabilities_and_failures_in_order():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 2)).eval()
    found = answer(network, batches(DATA, SETTING), torch.device("cpu"))
    expected = network(DATA.tensors[0]).softmax(1).detach().numpy()
    np.testing.assert_allclose(found.probabilities, expected, atol=1e-6)
    assert found.y.tolist() == [0, 1] * 5
    assert found.failed.tolist() == (expected.argmax(1) != found.y).tolist()
    assert found.confidence == pytest.approx(expected[np.arange(10), found.y], abs=1e-6)


def test_batches__of_training_are_whole_and_images_are_plain():
    assert [len(x) for x, _ in batches(DATA, SETTING)] == [4, 4, 2]
    assert [len(x) for x, _ in batches(DATA, SETTING, shuffle=True)] == [4, 4]
    images = torch.cat(list(plain_images(batches(DATA, SETTING), SETTING)))
    assert torch.allclose(images, (DATA.tensors[0] * 0.5 + 0.25).clamp(0, 1))


@pytest.mark.parametrize(("epochs", "kept"), [(30, 3), (4, 1)])
def test_early__weights_of_a_tenth_of_the_epochs(epochs, kept):
    keep, module = KeepEarly(epochs), SimpleNamespace(net=nn.Linear(2, 1))
    for epoch in range(epochs):
        nn.init.constant_(module.net.bias, float(epoch))
        keep.on_train_epoch_end(SimpleNamespace(current_epoch=epoch), module)
    assert keep.weights["bias"].item() == kept - 1


def test_network__is_the_same_for_a_seed():
    first, second = (new_network(SETTING, 3).net.state_dict() for _ in range(2))
    assert all(torch.equal(values, second[name]) for name, values in first.items())
