"""Galleries that a real Trainer leaves on disk."""

import time

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_failures.encoders import ModuleEncoder
from lightning_failures.report.run_folder import open_run
from tests.helpers.toy import OracleClassifier, callback, loader, trainer
from tests.trainer.pictures.planted import of_kind


class Slow(TensorDataset):
    """Makes an epoch last long enough for attacks."""

    def __getitem__(self, index):
        time.sleep(0.025)
        return super().__getitem__(index)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*")
@pytest.mark.parametrize("door", ["fit", "validate"])
def test_feature_attacks__behind_both_doors_without_a_trace(tmp_path, door):
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net[0].reset_parameters()
    failure_modes = callback(
        pictures=True, robust_encoder=ModuleEncoder(net, "2", copy=False), cache_folder=tmp_path / "cache"
    )
    run = trainer(tmp_path, failure_modes, num_sanity_val_steps=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    module = OracleClassifier()
    if door == "fit":
        slow = Slow(
            *(torch.stack(column) for column in zip(*((x, torch.tensor(y)) for x, y in loader().dataset), strict=True))
        )
        run.fit(module, DataLoader(slow, batch_size=16), loader(200))
    else:
        state = torch.random.get_rng_state()
        run.validate(module, loader(200), verbose=False)
        assert torch.equal(torch.random.get_rng_state(), state)
    drawn = open_run(next(tmp_path.rglob("gallery.json")).parent).gallery
    features = of_kind(drawn, "features/")
    assert len(features) == len(failure_modes.last_report.features) > 0
    attacked = [picture.rows[2] for picture in features if len(picture.rows) == 3]
    assert len(attacked) > 0  # in fit, as many as time allows
    assert all("->" in tile.text for row in attacked for tile in row.tiles)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert not any(m._forward_hooks for m in net.modules())
