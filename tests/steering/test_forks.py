"""Forks in a real Trainer: what they share, what they differ in, what comes out, what is refused."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.interventions.validation_split import Part, part_of
from lightning_failures.steering.forks.from_trainer import fork_trainer
from lightning_failures.steering.forks.run import Forks, Run, fork_verdict
from tests.helpers.toy import Images, OracleClassifier, callback, loader, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
]


class Numbered(Images):
    def __getitem__(self, index):
        return *super().__getitem__(index), index


DATA = Numbered(96, seed=5)


class Learns(OracleClassifier):
    """The more dark images it is shown, the more of them it gets right; steps have noise. Remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.skill = nn.Parameter(torch.tensor(-1.5))
        self.drawn: dict[int, list[int]] = {}

    def forward(self, x):
        return super().forward(x) * (1 + 0.01 * self.skill)

    def _guess(self, pixels):
        labels = (pixels[:, 0, 0, 0] * 10).round().long()
        dark = pixels.mean((1, 2, 3)) < 0.45
        wrong = dark & (pixels[:, 1, 3, 3] * 1000 % 1 > self.skill.sigmoid())
        return 4.0 * nn.functional.one_hot((labels + wrong.long()) % 4, 4).float()

    def training_step(self, batch, batch_idx):
        x, _, index = batch
        self.drawn.setdefault(self.current_epoch, []).extend(index.tolist())
        dark = (x.mean((1, 2, 3)) * 0.25 + 0.5 < 0.45).float().mean()
        return -self.skill * (dark - 0.5 + 0.1 * torch.randn(()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD([self.skill], lr=1.0)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.9)]


class Maker:
    """Makes equal runs, and keeps them."""

    def __init__(self, tmp_path, *interventions, module=Learns, callbacks=(), every_n_epochs=1, **options):
        self.tmp_path, self.interventions = tmp_path, interventions or (Upweight(8.0, triage=False),)
        self.module, self.callbacks, self.options = module, callbacks, {"max_epochs": 3} | options
        self.every_n_epochs = every_n_epochs
        self.runs = []

    def __call__(self) -> Run:
        modes = callback(
            interventions=() if self.interventions == (None,) else copy.deepcopy(self.interventions),
            pictures=False,
            cache_folder=self.tmp_path / "cache",
            every_n_epochs=self.every_n_epochs,
        )
        order = torch.Generator().manual_seed(3)
        data = {
            "train_dataloaders": DataLoader(DATA, batch_size=16, shuffle=True, generator=order),
            "val_dataloaders": loader(400),
        }
        run = trainer(self.tmp_path, modes, *(make() for make in self.callbacks), **self.options)
        self.runs.append(Run(run, self.module(), data))
        return self.runs[-1]

    def checkpoint(self, epochs=1, name="start.ckpt", weights_only=False):
        """Train, and save at the end of an epoch."""
        path = self.tmp_path / "run" / "checkpoints" / name

        class Saves(Callback):
            def on_train_epoch_end(self, trainer, pl_module):
                if trainer.current_epoch == epochs - 1:
                    trainer.save_checkpoint(path, weights_only=weights_only)

        L.seed_everything(1, verbose=False)
        run = self()
        run.trainer.callbacks.append(Saves())
        run.trainer.fit_loop.max_epochs = epochs
        run.trainer.fit(run.module, **run.data)
        self.runs.clear()
        return path


def modes_of(run):
    return next(one for one in run.trainer.callbacks if hasattr(one, "interventions"))


# -- what comes out ------------------------------------------------------------------------------------------


def test_verdict__what_helps_is_found_and_told(tmp_path):
    make = Maker(tmp_path)
    found = fork_verdict(make, make.checkpoint(), pairs=3, folder=tmp_path / "out")
    assert found.outcome == "helped"
    assert found.difference > 0.2
    assert found.overall.outcome == "helped"
    assert found.overall.examples > found.examples >= 50
    assert found.noise > 0
    assert (found.pairs, len(make.runs)) == (3, 7)  # one to look at the checkpoint
    for part in ("Helped: of ", "flagged examples of the report part", "1 epoch from the checkpoint", "of all"):
        assert part in found.sentence
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
def test_verdict__what_hurts(tmp_path):
    class Forgets(Learns):
        def training_step(self, batch, batch_idx):
            return -super().training_step(batch, batch_idx)

    make = Maker(tmp_path, module=Forgets)
    found = fork_verdict(make, make.checkpoint(), pairs=3)
    assert found.outcome == "hurt"


def test_factor_1__forks_are_identical_and_say_no_evidence(tmp_path):
    make = Maker(tmp_path, Upweight(1.0))
    found = fork_verdict(make, make.checkpoint(), pairs=2)
    assert found.outcome == "no evidence"
    assert found.difference == found.overall.difference == 0
    _, one, other, third, _ = (run.module for run in make.runs)
    assert one.drawn == other.drawn
    assert one.skill.item() == other.skill.item() != third.skill.item()


def test_one_pair__says_nothing(tmp_path):
    make = Maker(tmp_path)
    assert fork_verdict(make, make.checkpoint(), pairs=1).outcome == "not measured"


def test_not_measured__a_training_without_a_seed(tmp_path):
    class Determined(OracleClassifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    make = Maker(tmp_path, module=Determined)
    found = fork_verdict(make, make.checkpoint(), pairs=2)
    assert found.outcome == "not measured"
    assert "seed" in found.sentence


def test_not_measured__nothing_to_change(tmp_path):
    class Right(Learns):
        def _guess(self, pixels):
            return 4.0 * nn.functional.one_hot((pixels[:, 0, 0, 0] * 10).round().long() % 4, 4).float()

    make = Maker(tmp_path, module=Right)
    found = fork_verdict(make, make.checkpoint(), pairs=1)
    assert found.outcome == "not measured"
    assert "nothing to change" in found.sentence


# -- what forks share and differ in --------------------------------------------------------------------------


@pytest.mark.slow
def test_forks__draws_steps_and_schedulers(tmp_path):
    make = Maker(tmp_path)
    path = make.checkpoint()
    fork_verdict(make, path, pairs=2, epochs=2)
    without, with_it, second, _ = (run.module for run in make.runs[1:])
    everything = list(range(len(DATA)))
    for module in (without, with_it, second):
        assert set(module.drawn) == {1, 2}  # goes on after epoch 0
        assert all(len(epoch) == len(DATA) for epoch in module.drawn.values())
    assert [sorted(epoch) for epoch in without.drawn.values()] == [everything] * 2
    assert without.drawn[1] != second.drawn[1]  # though the loader has a generator of its own
    share = [float(DATA.dark[module.drawn[1]].float().mean()) for module in (without, with_it)]
    assert share[1] > share[0] + 0.2
    for run in make.runs[1:]:
        assert run.trainer.global_step == 3 * 6
        assert run.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.9**3)
        assert "process_dataloader" not in vars(run.trainer.strategy)


@pytest.mark.slow
def test_forks__of_one_seed_are_reproducible(tmp_path):
    make = Maker(tmp_path)
    path = make.checkpoint()
    assert fork_verdict(make, path, pairs=2) == fork_verdict(make, path, pairs=2)
    assert fork_verdict(make, path, pairs=2) != fork_verdict(make, path, pairs=2, seed=1)


def test_forks__random_numbers_of_the_caller_and_checkpoint_stay(tmp_path):
    make = Maker(tmp_path)
    path = make.checkpoint()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    content = path.read_bytes()
    fork_verdict(make, path, pairs=1)
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    assert after == before
    assert path.read_bytes() == content


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_forks__do_without_checkpoints_early_stops_and_loggers(tmp_path):
    make = Maker(
        tmp_path,
        callbacks=[
            lambda: EarlyStopping("val_loss", patience=1, min_delta=99.0),
            lambda: ModelCheckpoint(tmp_path / "kept", monitor="failures/decision/accuracy", mode="max"),
        ],
        enable_checkpointing=True,
        max_epochs=9,
    )
    path = make.checkpoint()
    (written,) = (tmp_path / "kept").iterdir()
    written.unlink()
    forks = Forks(make, tmp_path / "place", 0)
    forks.place.mkdir()
    start = forks.begin(str(path), tmp_path)
    grades = forks.train(start, 4, 0, treated=True)
    assert make.runs[-1].trainer.current_epoch == 4
    assert list((tmp_path / "kept").iterdir()) == []
    # what was chosen by the decision part stays out of the verdict
    whole = make.runs[-1].trainer.callbacks[1].last_report.parts.report.grades
    assert (part_of(grades, decision=True) == Part.REPORT).all()
    assert 0 < len(grades) < len(whole)


def test_forks__a_copy_of_the_files_that_interventions_keep(tmp_path):
    seen = []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            mine = Path(trainer.log_dir) / "failures" / "interventions" / "0_Upweight" / "ledger.json"
            seen.append(mine.read_text())
            mine.write_text("changed")

    make = Maker(tmp_path)
    path = make.checkpoint()
    kept = path.parent.parent / "failures" / "interventions" / "0_Upweight"
    kept.mkdir(parents=True)
    (kept / "ledger.json").write_text("as it was")
    make.callbacks = (Looks,)
    fork_verdict(make, path, pairs=1)
    assert seen == ["as it was"] * 2
    assert (kept / "ledger.json").read_text() == "as it was"


def test_forks__longer_than_the_training_was_to_be(tmp_path):
    make = Maker(tmp_path, max_epochs=2, every_n_epochs=2)
    path = make.checkpoint(2)
    fork_verdict(make, path, pairs=1, epochs=3)  # ends between two analyses, so it validates once more
    assert [set(run.module.drawn) for run in make.runs[1:]] == [{2, 3, 4}] * 2
    found = fork_verdict(make, path, pairs=1, until=2)
    assert found.outcome == "not measured"
    assert "ends before" in found.sentence


# -- which checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before",
    [
        None,
        pytest.param(Upweight(2.0, triage=False), marks=pytest.mark.slow),
        pytest.param(Upweight(8.0, triage=False, dry_run=True), marks=pytest.mark.slow),
    ],
)
def test_checkpoint__without_this_decision_goes_on_until_there_is_one(tmp_path, before):
    path = Maker(tmp_path, before).checkpoint()
    make = Maker(tmp_path, max_epochs=1)
    found = fork_verdict(make, path, pairs=2, epochs=1)
    assert found.outcome == "helped"
    waited, *forks = make.runs
    assert sorted(waited.module.drawn[1]) == list(range(len(DATA)))
    assert [set(run.module.drawn) for run in forks] == [{2}] * 4


@pytest.mark.slow
def test_checkpoint__until_the_end_of_the_training(tmp_path):
    make = Maker(tmp_path, max_epochs=4)
    fork_verdict(make, make.checkpoint(), pairs=1, until=4)
    assert [set(run.module.drawn) for run in make.runs[-2:]] == [{1, 2, 3}] * 2


def test_checkpoint__written_too_late_or_without_a_training(tmp_path):
    make = Maker(tmp_path)
    with pytest.raises(ConfigurationError, match="after the interventions had begun"):
        fork_verdict(make, make.checkpoint(2))
    with pytest.raises(ConfigurationError, match="save_weights_only=False"):
        fork_verdict(make, make.checkpoint(weights_only=True))
    with pytest.raises(ConfigurationError, match="no checkpoint"):
        fork_verdict(make, tmp_path / "nothing.ckpt")


@pytest.mark.parametrize(
    ("interventions", "options", "told"),
    [
        ((None,), {}, "FailureModes\\(interventions"),
        ((Upweight(2.0, dry_run=True),), {}, "dry_run"),
        ((), {"pairs": 0}, "pairs"),
        ((), {"epochs": 0}, "epochs"),
        ((), {"epochs": 2}, "max_steps"),
    ],
)
def test_refused__what_cannot_give_a_verdict(tmp_path, interventions, options, told):
    path = Maker(tmp_path).checkpoint()
    with pytest.raises(ConfigurationError, match=told):
        fork_verdict(Maker(tmp_path, *interventions, max_steps=12), path, **options)


# -- at the end of a training --------------------------------------------------------------------------------


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
            (modes,) = (one for one in trainer.callbacks if hasattr(one, "interventions"))
            modes._detach()
            self.found = fork_trainer(trainer, pl_module, modes, self.path, pairs=2)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(DATA, batch_size=16, shuffle=True)

    def val_dataloader(self):
        return loader(400)


@pytest.mark.parametrize("datamodule", [True, pytest.param(False, marks=pytest.mark.slow)])
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
