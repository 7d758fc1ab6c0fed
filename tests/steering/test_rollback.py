"""Automatic rollback in a real Trainer."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lightning_failures import FailureModes
from lightning_failures.callback import AdvancedOptions
from lightning_failures.errors import ConfigurationError
from lightning_failures.steering.rollback import Rollback
from tests.end_to_end.test_interventions import DATA, Drawn, fit, steered
from tests.helpers.toy import ColourEncoder, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Spoilt(Drawn):
    """Goes wrong in epoch 1, whatever is drawn."""

    def __init__(self, spoilt: int | None = 1) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.spoilt = spoilt
        self.seen: list[float] = []

    def forward(self, x):
        return self._guess(x * 0.25 + 0.5) + self.net(x) * 0 + self.shift

    def training_step(self, batch, batch_idx):
        if self.current_epoch == self.spoilt:
            with torch.no_grad():
                self.shift[0] = 50.0
        return super().training_step(batch, batch_idx) + 0 * self.shift.sum()

    def on_train_epoch_start(self):
        self.seen.append(self.shift[0].item())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def test_rollback__what_hurt_is_undone(tmp_path):
    failures = steered(auto_rollback=True)
    module = Spoilt()
    with pytest.warns(
        UserWarning, match="The interventions are undone: the next epoch begins with the weights from before them"
    ):
        fit(tmp_path, failures, module=module, epochs=4)
    assert module.seen == [0.0, 0.0, 0.0, 0.0]  # epoch 2 begins where epoch 1 began
    told = failures.last_report["interventions"][0]
    assert told["rolled_back"]["epoch"] == 1
    assert "decision part" in told["rolled_back"]["reason"]
    assert not told["changes_training"]
    for epoch in (2, 3):
        assert sorted(module.epochs[epoch]) == list(range(len(DATA)))
    assert failures.last_report.summary["decision/accuracy"] == pytest.approx(0.6, abs=0.15)


def test_rollback__what_did_not_hurt_stays(tmp_path):
    failures = steered(auto_rollback=True)
    module, _ = fit(tmp_path, failures, module=Spoilt(spoilt=None), epochs=3)
    told = failures.last_report["interventions"][0]
    assert told["rolled_back"] is None
    assert sorted(module.epochs[2]) != list(range(len(DATA)))


def test_rollback__survives_a_resume(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", every_n_epochs=1)
    fit(
        tmp_path,
        steered(auto_rollback=True),
        module=Spoilt(None),
        epochs=2,  # the last epoch makes no decision
        callbacks=[saves],
        enable_checkpointing=True,
    )
    module, failures = Spoilt(), steered(auto_rollback=True)
    with pytest.warns(UserWarning, match="undone"):
        fit(
            tmp_path,
            failures,
            module=module,
            epochs=3,
            callbacks=[ModelCheckpoint(tmp_path / "resumed")],
            enable_checkpointing=True,
            ckpt_path=tmp_path / "epoch=0.ckpt",
        )
    assert module.seen == [0.0, 0.0]
    assert failures.last_report["interventions"][0]["rolled_back"]["epoch"] == 1


def test_rollback__sharded_weights_are_refused(tmp_path):
    run = trainer(tmp_path)
    run.strategy.__class__ = FSDPStrategy
    with pytest.raises(ConfigurationError, match="FSDPStrategy"):
        Rollback.check(run)


def test_rollback__without_interventions_is_refused():
    with pytest.raises(ConfigurationError, match="auto_rollback"):
        FailureModes(encoder=ColourEncoder(), advanced=AdvancedOptions(auto_rollback=True))


def test_rollback__a_file_that_is_gone_does_not_end_the_training(tmp_path):
    class Loses(Spoilt):
        def on_validation_end(self):
            for file in tmp_path.glob("failures/**/before_interventions.pt"):
                file.unlink()

    module = Loses()
    with pytest.warns(UserWarning, match="are undone"), pytest.warns(UserWarning, match="skips the rollback"):
        fit(tmp_path, steered(auto_rollback=True, on_error="warn"), module=module, epochs=3)
    assert sorted(module.epochs) == [0, 1, 2]
