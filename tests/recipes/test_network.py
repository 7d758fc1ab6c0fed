"""The network keeps small images, and its rate rises to the peak and falls to nothing."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_failures.recipes.base import Schedule
from lightning_failures.recipes.network import Classifier, network


@pytest.mark.parametrize(("size", "edge"), [(32, 4), (64, 2)])
def test_network__size_of_the_last_maps(size, edge):
    model = network(5, size)
    seen = []
    model.layer4.register_forward_hook(lambda module, args, out: seen.append(out.shape[-1]))
    assert model(torch.zeros(2, 3, size, size)).shape == (2, 5)
    assert seen == [edge]


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
def test_rate__is_a_triangle():
    class Tiny(Classifier):
        def __init__(self):
            super().__init__(2, 32, Schedule(epochs=4, learning_rate=0.5, peak_epoch=1, batch_size=2))
            self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
            self.rates = []

        def on_train_batch_start(self, batch, batch_idx):
            self.rates.append(self.optimizers().param_groups[0]["lr"])

    model = Tiny()
    data = DataLoader(TensorDataset(torch.rand(20, 3, 1, 1), torch.arange(20) % 2), 2)
    L.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, data)  # fmt: skip
    assert len(model.rates) == 40
    assert max(model.rates) == model.rates[9] == pytest.approx(0.5)
    assert model.rates[0] == pytest.approx(0.05)
    assert 0 < model.rates[-1] < 0.03
