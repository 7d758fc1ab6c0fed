"""Training of the last layer alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import AddFiltered
from lightning_failures.steering.head_only import HeadOnly
from tests.end_to_end.test_added import POOL
from tests.end_to_end.test_interventions import Drawn, fit, steered

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Deep(Drawn):
    """Two layers with statistics between them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        self.states: list[dict[str, torch.Tensor]] = []
        self.modes: list[bool] = []

    def on_train_epoch_start(self):
        self.states.append({name: value.clone() for name, value in self.net.state_dict().items()})

    def training_step(self, batch, batch_idx):
        self.modes.append(self.net[2].training)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05, weight_decay=0.5)


class HeadFiltered(AddFiltered):
    """Trains the last layer alone while it adds examples."""

    head_only = True


def test_head__only_the_last_layer_moves_while_examples_are_added(tmp_path):
    module, modes = Deep(), steered(HeadFiltered(POOL, 10, similarity=1.0, start_epoch=1, stop_epoch=2))
    fit(tmp_path, modes, module=module, epochs=4)
    assert modes.last_report["interventions"][0]["added"] == 40

    def moved(first, second):
        return {k for k, v in module.states[first].items() if not torch.equal(v, module.states[second][k])}

    assert moved(1, 2) == {"4.weight", "4.bias"}
    assert moved(2, 3) == set(module.states[0])
    per_epoch = len(module.modes) // 4
    assert module.modes == [True] * per_epoch + [False] * per_epoch + [True] * 2 * per_epoch


def test_head__by_name_or_the_last_layer():
    module = Deep()
    assert HeadOnly(True).find(module) is module.net[4]
    assert HeadOnly("net.1").find(module) is module.net[1]
    with pytest.raises(ConfigurationError, match="no such submodule"):
        HeadOnly("net.9").find(module)
    with pytest.raises(ConfigurationError, match="Name the submodule"):
        HeadOnly(True).find(nn.Sequential(nn.ReLU()))


def test_head__a_wrong_name_is_an_error_before_the_first_batch(tmp_path):
    class Wrong(HeadFiltered):
        head_only = "classifier"

    module = Deep()
    with pytest.raises(ConfigurationError, match="classifier"):
        fit(tmp_path, steered(Wrong(POOL)), module=module)
    assert not module.epochs
