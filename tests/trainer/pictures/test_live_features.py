"""Features of the live model: the features of the evaluation, maps of pooled networks, gradients of others."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch import nn

from lightning_failures.encoders.base import DifferentiableEncoder
from lightning_failures.encoders.feature_attack import feature_attack
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.pictures.live_features import LiveFeatures

SPACE = ImageSpace((0.5,), (0.25,))


class Pooled(L.LightningModule):
    """Two maps whose means are the features: of the red channel, and of the green one."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 2, 1, bias=False)
        self.pool = nn.Sequential(nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(2, 3)
        self.maps.weight.data = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])[:, :, None, None]
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return self.fc(self.pool(self.maps(x)))


class Flat(Pooled):
    """One feature for each pixel of the first map."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x):
        return self.fc(self.maps(x)[:, 0].flatten(1))


def live(module: L.LightningModule) -> LiveFeatures:
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False, enable_model_summary=False)
    trainer.strategy.connect(module)
    return LiveFeatures(trainer, "fc", SPACE, torch.zeros(1, 3, 8, 8))


@pytest.fixture
def images():
    red = torch.zeros(2, 3, 8, 8)
    red[0, 0, :4, :4] = 1.0
    red[1, 0, 4:, 4:] = 1.0
    return red


def test_features__are_those_of_the_model_and_it_stays_as_it_was(images):
    module = Pooled().train()
    features = live(module)
    with torch.no_grad():
        expected = module.eval().pool(module.maps(SPACE.from_unit(images, torch.empty(0))))
    module.train()
    assert torch.allclose(features.encode_images(images), expected)
    assert features.dim == 2
    assert isinstance(features, DifferentiableEncoder)
    assert module.training
    assert module.calls == []
    assert not module.fc._forward_pre_hooks
    assert not module.maps._forward_hooks
    assert all(parameter.grad is None for parameter in module.parameters())


def test_heat_maps__of_pooled_features_are_their_maps(images):
    maps = live(Pooled()).heat_maps(images, 0)
    assert torch.equal(maps, images[:, 0])


def test_heat_maps__of_other_features_show_the_pixels_that_they_depend_on(images):
    maps = live(Flat()).heat_maps(images, 8 * 6 + 7)
    assert [int(one.argmax()) for one in maps] == [8 * 6 + 7] * 2
    assert int((maps > 0).sum()) == 2


def test_attack__strengthens_the_feature(images):
    model = live(Pooled())
    with torch.inference_mode(), model.differentiable() as features:
        moved = feature_attack(features, images, 1, iterations=5)
        assert (features(moved)[:, 1] > features(images)[:, 1] + 0.5).all()


def test_problem__names_what_differs(images):
    features = live(Pooled())
    values = features.encode_images(images)[:, 0].tolist()
    assert features.problem(images, 0, values) is None
    assert "other features" in features.problem(images, 0, [value + 1 for value in values])
    assert "does not take these images" in features.problem(images[:, :2], 0, values)
