"""Forks of a live Trainer at the end of its training."""

from __future__ import annotations

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from lightning_failures.steering.forks.from_trainer import fork_trainer
from tests.helpers.toy import loader
from tests.steering.forks.runs import DATA, Learns, Maker

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
]


class AtTheEnd(Callback):
    """Calls as FailureModes(verdict="fork") would; not in the forks."""

    def __init__(self, path):
        self.path, self.found, self.forks = path, None, True

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0 and self.forks:
            trainer.save_checkpoint(self.path)

    def on_fit_end(self, trainer, pl_module):
        if self.forks:
            self.forks = False
            (failures,) = (one for one in trainer.callbacks if hasattr(one, "interventions"))
            failures._detach()
            self.found = fork_trainer(trainer, pl_module, failures, self.path, pairs=2)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(DATA, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return loader(400)


@pytest.mark.parametrize("datamodule", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_live__at_the_end_of_a_fit(tmp_path, datamodule):
    run = Maker(tmp_path)()
    ending = AtTheEnd(tmp_path / "start.ckpt")
    run.trainer.callbacks.append(ending)
    run.trainer.fit(run.module, **({"datamodule": Data()} if datamodule else run.data))
    assert ending.found.outcome == "helped"
    assert "2 epochs from the checkpoint on" in ending.found.sentence
    assert run.module.trainer is run.trainer
    assert run.trainer.current_epoch == 3
    assert set(run.module.drawn) == {0, 1, 2}
    if datamodule:
        assert run.trainer.datamodule.trainer is run.trainer


def test_live__a_module_that_cannot_be_copied(tmp_path):
    class Held(Learns):
        def __deepcopy__(self, memo):
            raise TypeError("a lock")

    run = Maker(tmp_path, module=Held)()
    ending = AtTheEnd(tmp_path / "start.ckpt")
    run.trainer.callbacks.append(ending)
    run.trainer.fit(run.module, **run.data)
    assert ending.found.outcome == "not measured"
    assert "a lock" in ending.found.sentence
    assert "lightning-failures verdict" in ending.found.sentence
