"""Automatic rollback in a real Trainer."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lightning_failures import FailureModes
from lightning_failures.callback import AdvancedOptions
from lightning_failures.data.grades import Grades
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
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


class Wobbling(Drawn):
    """Wrong on a share of the images that wobbles from epoch to epoch, and is larger from epoch ``since`` on."""

    def __init__(self, wobble: float, *, since: int = 99, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.shares = (0.3 + wobble * torch.randn(30, generator=generator)).tolist()
        self.since = since

    def forward(self, x):
        logits = self._guess(x * 0.25 + 0.5)
        share = self.shares[self.current_epoch] + 0.25 * (self.current_epoch >= self.since)
        spoilt = x[:, 0, 1, 1].mul(1e3).remainder(1) < share  # as good as a draw for each image
        return torch.where(spoilt[:, None], logits.roll(1, dims=1), logits) + self.net(x) * 0


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_rollback__wobble_is_no_harm(tmp_path, seed):
    failures = steered(auto_rollback=True)
    _, _ = fit(tmp_path, failures, module=Wobbling(0.08, seed=seed), epochs=6)
    (told,) = failures.last_report["interventions"]
    assert told["began"] is not None
    assert told["rolled_back"] is None
    accuracies = [point["decision/accuracy"] for point in told["trend"]]
    assert min(accuracies) < accuracies[0] - 0.05  # a fall, which the history explains


def test_rollback__harm_is_told_from_the_wobble_of_the_run(tmp_path):
    failures = steered(Upweight(factor=4.0, start_epoch=4), auto_rollback=True)
    with pytest.warns(UserWarning, match="The interventions are undone"):
        fit(tmp_path, failures, module=Wobbling(0.02, since=4), epochs=9)
    told = failures.last_report["interventions"][0]
    assert 4 <= told["rolled_back"]["epoch"] < 9
    assert "wobble of 0.0" in told["rolled_back"]["reason"]


def test_rollback__the_history_survives_a_resume(tmp_path):
    def run(folder, epochs, **options):
        failures = steered(Upweight(factor=4.0, start_epoch=2), auto_rollback=True)
        saves = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}", every_n_epochs=1)
        module = Wobbling(0.05)
        fit(tmp_path, failures, module=module, epochs=epochs, callbacks=[saves], enable_checkpointing=True, **options)
        return failures.state_dict()["steering"]["rollback"]

    whole = run(tmp_path / "whole", 5)
    assert (len(whole["earlier"]), len(whole["since"]), whole["looks"]) == (1, 3, 3)
    resumed = run(tmp_path / "resumed", 5, ckpt_path=tmp_path / "whole" / "epoch=2.ckpt")
    for name in ("earlier", "since"):
        pairs = list(zip(whole[name], resumed[name], strict=True))
        assert all(torch.equal(one[key], other[key]) for one, other in pairs for key in ("ids", "correct"))
    assert resumed["looks"] == 3


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


def decision(ids, digests, correct) -> Grades:
    ids = torch.as_tensor(ids)
    zeros = torch.zeros(len(ids)).long()
    digests = None if digests is None else torch.as_tensor(digests)
    return Grades(ids, zeros, (~torch.as_tensor(correct)).long(), torch.ones(len(ids)), ("a", "b"), digests=digests)


@pytest.mark.parametrize("former", [False, True])
def test_judge__compares_the_same_images_whatever_their_ids(tmp_path, former):
    """Of 200 examples half are gone, the others have moved by one; every second one is right, then and now."""
    right = torch.arange(200) % 2 == 0
    before = {"ids": torch.arange(200), "correct": right}
    rollback = Rollback(0)
    digests = {} if former else {"digests": torch.arange(1000, 1200)}
    rollback.load({"before": before | digests, "file": "x", "undone": None, "pending": False})
    now = decision(torch.arange(1, 101), torch.arange(1000, 1100), right[:100])
    verdict = rollback.judge(now)
    if former:  # ids are all it has
        assert (verdict.examples, verdict.difference) == (100, 0.0)
        assert verdict.outcome == "no evidence"
        return
    assert (verdict.examples, verdict.difference, verdict.outcome) == (100, 0.0, "no evidence")
    assert "100 others of then are not in this validation" in verdict.sentence
    wrong = decision(torch.arange(200), torch.arange(5000, 5200), torch.zeros(200, dtype=torch.bool))
    assert rollback.judge(wrong).outcome == "not measured"  # other images under the same ids
    again = Rollback(0)
    again.load({"before": before | digests, "file": "x", "undone": None, "pending": False})
    fallen = [again.judge(decision(torch.arange(200), digests["digests"], ~right & right)) for _ in range(5)]
    assert fallen[-1].outcome == "hurt"
