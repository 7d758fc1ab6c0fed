"""Forks in a real Trainer: what they share, what they differ in, what comes out, what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import nn

from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions import Upweight
from lightning_failures.interventions.validation_split import Part, part_of
from lightning_failures.steering.forks.run import Forks, fork_verdict
from tests.helpers.toy import OracleClassifier
from tests.steering.forks.runs import DATA, Learns, Maker

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval.*"),
]


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
