"""What is chosen and undone while interventions are on, and training of the last layer alone."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lightning_failures import FailureModes
from lightning_failures.callback import AdvancedOptions
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import AddFiltered, Upweight
from lightning_failures.steering.head_only import HeadOnly
from lightning_failures.steering.rollback import Rollback
from tests.end_to_end.test_added import POOL, filtered
from tests.end_to_end.test_interventions import DATA, Drawn, fit, steered, train_loader
from tests.helpers.toy import ColourEncoder, callback, loader, trainer

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
    modes = steered(auto_rollback=True)
    module = Spoilt()
    with pytest.warns(
        UserWarning, match="The interventions are undone: the next epoch begins with the weights from before them"
    ):
        fit(tmp_path, modes, module=module, epochs=4)
    assert module.seen == [0.0, 0.0, 0.0, 0.0]  # epoch 2 begins where epoch 1 began
    told = modes.last_report["interventions"][0]
    assert told["rolled_back"]["epoch"] == 1
    assert "decision part" in told["rolled_back"]["reason"]
    assert not told["changes_training"]
    for epoch in (2, 3):
        assert sorted(module.epochs[epoch]) == list(range(len(DATA)))
    assert modes.last_report.summary["decision/accuracy"] == pytest.approx(0.6, abs=0.15)


def test_rollback__what_did_not_hurt_stays(tmp_path):
    modes = steered(auto_rollback=True)
    module, _ = fit(tmp_path, modes, module=Spoilt(spoilt=None), epochs=3)
    told = modes.last_report["interventions"][0]
    assert told["rolled_back"] is None
    assert sorted(module.epochs[2]) != list(range(len(DATA)))


def test_rollback__survives_a_resume(tmp_path):
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", every_n_epochs=1)
    fit(
        tmp_path,
        steered(auto_rollback=True),
        module=Spoilt(None),
        epochs=1,
        callbacks=[saves],
        enable_checkpointing=True,
    )
    module, modes = Spoilt(), steered(auto_rollback=True)
    with pytest.warns(UserWarning, match="undone"):
        fit(
            tmp_path,
            modes,
            module=module,
            epochs=3,
            callbacks=[ModelCheckpoint(tmp_path / "resumed")],
            enable_checkpointing=True,
            ckpt_path=tmp_path / "epoch=0.ckpt",
        )
    assert module.seen == [0.0, 0.0]
    assert modes.last_report["interventions"][0]["rolled_back"]["epoch"] == 1


def test_rollback__sharded_weights_are_refused(tmp_path):
    run = trainer(tmp_path)
    run.strategy.__class__ = FSDPStrategy
    with pytest.raises(ConfigurationError, match="FSDPStrategy"):
        Rollback.check(run)


def test_rollback__without_interventions_is_refused():
    with pytest.raises(ConfigurationError, match="auto_rollback"):
        FailureModes(encoder=ColourEncoder(), advanced=AdvancedOptions(auto_rollback=True))


def test_decision_part__is_there_when_it_is_monitored(tmp_path):
    saves = ModelCheckpoint(tmp_path, monitor="failures/decision/accuracy", mode="max")
    modes = steered(every_n_epochs=2)
    fit(tmp_path, modes, epochs=3, callbacks=[saves], enable_checkpointing=True)
    report = modes.last_report
    parts = [set(part.grades.ids.tolist()) for part in (report.parts.report, report.parts.decision)]
    assert not parts[0] & parts[1]
    assert sum(map(len, parts)) + report.examples == 400
    assert report.summary["decision/accuracy"] == pytest.approx(
        report.parts.decision.grades.correct.float().mean().item()
    )
    assert "decision/flagged_error_rate" in report.summary
    assert saves.best_model_score is not None


def test_decision_part__needs_interventions(tmp_path):
    saves = ModelCheckpoint(tmp_path, monitor="failures/decision/accuracy")
    with pytest.raises(ConfigurationError, match="Monitor 'failures/accuracy'"):
        fit(tmp_path, callback(), callbacks=[saves], enable_checkpointing=True)


# -- the last layer alone ------------------------------------------------------------------------------------


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


def test_held__a_class_that_is_cured_keeps_its_weights(tmp_path):
    class Cured(Drawn):
        """Errs on dark images in epoch 0 only."""

        def _guess(self, pixels):
            if self.current_epoch == 0:
                return super()._guess(pixels)
            return 4.0 * nn.functional.one_hot((pixels[:, 0, 0, 0] * 10).round().long() % 4, 4).float()

    modes, module = steered(), Cured()
    fit(tmp_path, modes, module=module, epochs=4)
    assert modes.last_report.accuracy == 1.0
    told = modes.last_report["interventions"][0]
    assert told["flagged"] > 10
    assert all(entry["reason"].startswith("as before: skipped") for entry in told["classes"] if entry["flagged"])
    for epoch in (1, 2, 3):
        assert DATA.dark[module.epochs[epoch]].float().mean() > DATA.dark.float().mean() + 0.1


class Failing(Upweight):
    """Cannot decide."""

    def decide(self, examples, round=None):
        raise RuntimeError("no idea")


def test_decisions__all_or_none(tmp_path):
    modes = steered(Upweight(factor=4.0), Failing(), on_error="warn", auto_rollback=True)
    with pytest.warns(UserWarning, match="no idea"):
        module, _ = fit(tmp_path, modes)
    assert sorted(module.epochs[1]) == list(range(len(DATA)))
    assert not modes.last_report["interventions"]


def test_loaders__that_were_replaced_are_free_to_go(tmp_path):
    made = []

    class Reloads(Drawn):
        def train_dataloader(self):
            made.append(weakref.ref(data := train_loader()))
            return data

    run = trainer(tmp_path, steered(filtered()), max_epochs=4, reload_dataloaders_every_n_epochs=1)
    run.fit(Reloads(), val_dataloaders=loader(400))
    gc.collect()
    assert len(made) == 4
    assert [one() for one in made[:3]] == [None] * 3


def test_rollback__a_file_that_is_gone_does_not_end_the_training(tmp_path):
    class Loses(Spoilt):
        def on_validation_end(self):
            for file in tmp_path.glob("failures/**/before_interventions.pt"):
                file.unlink()

    module = Loses()
    with pytest.warns(UserWarning, match="are undone"), pytest.warns(UserWarning, match="skips the rollback"):
        fit(tmp_path, steered(auto_rollback=True, on_error="warn"), module=module, epochs=3)
    assert sorted(module.epochs) == [0, 1, 2]
