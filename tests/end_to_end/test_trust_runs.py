"""Several runs of one checkpoint, and several commands for one folder, at the same time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_failures.core.locks import LOCK_FILE
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.synthesis.ledger import Ledger
from lightning_failures.report.run_folder import open_run
from tests.helpers.toy import Images, OracleClassifier
from tests.processes.embed_pool import LoggedEncoder, Pool, trainer
from tests.processes.launch import fork
from tests.processes.resumed_fit import CHECKPOINT, Halts, fit, saves

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches .* is smaller than the logging interval.*"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
    pytest.mark.filterwarnings("ignore:Experiment logs directory"),
]


def ledger_of(failures: Path) -> Ledger:
    (folder,) = (failures / "interventions").iterdir()
    return Ledger(folder)


def epochs_of(failures: Path) -> list[int]:
    return sorted(json.loads(path.read_text())["epoch"] for path in failures.glob("epoch=*/report.json"))


@pytest.mark.slow
def test_resume__while_the_first_run_still_runs(tmp_path):
    first, second = fork("resumed_fit", tmp_path, environments=[{"ROLE": "first"}, {"ROLE": "second"}], timeout=240)
    for ended in (first, second):
        assert ended.status == 0, ended.said[-3000:]
    one, other = tmp_path / "x" / "failures", tmp_path / "x" / "failures_2"
    assert f"Another run is writing to {one}. This run writes to {other}." in " ".join(second.said.split())
    assert "Another run" not in first.said
    for failures in (one, other):
        assert epochs_of(failures) == [0, 1, 2, 3]
        assert len(open_run(failures).history) == 4
        assert len(list(failures.glob("epoch=*/modes.safetensors"))) == 4
        ledger = ledger_of(failures)
        assert {row.epoch for row in ledger.rows} >= {1, 2, 3}
        assert not ledger.without_own_image
        assert not (failures / LOCK_FILE).exists()
    rows, copied = ledger_of(one).rows, ledger_of(other).rows
    both = [row for row in rows if row.epoch <= 2]
    assert copied[: len(both)] == both  # those before the checkpoint
    assert {row.seed for row in rows if row.epoch == 3}.isdisjoint(row.seed for row in copied if row.epoch == 3)

    # a later run of the second goes on where the second was
    fit(tmp_path, saves(tmp_path / "saved_3"), ckpt_path=tmp_path / "saved_2" / "epoch=2.ckpt")
    assert not (tmp_path / "x" / "failures_3").exists()


@pytest.mark.slow
def test_resume__after_the_first_run_was_killed(tmp_path):
    (ended,) = fork("resumed_fit", tmp_path, environments=[{"ROLE": "killed"}], timeout=120)
    assert ended.status == -signal.SIGKILL
    failures = tmp_path / "x" / "failures"
    assert (failures / LOCK_FILE).exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, saves(tmp_path / "again"), ckpt_path=tmp_path / CHECKPOINT)
    assert not any("Another run" in str(one.message) for one in caught)
    assert epochs_of(failures) == [0, 1, 2, 3]
    assert not ledger_of(failures).without_own_image
    assert [path.name for path in (tmp_path / "x").glob("failures*")] == ["failures"]
    assert not (failures / LOCK_FILE).exists()


def test_resume__under_another_version_the_interventions_get_a_folder_of_their_own(tmp_path):
    """The first run stands still in its third epoch, in which a second one is trained whole."""

    class Trains(Halts):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                logger = CSVLogger(tmp_path, name="", version="y")
                with pytest.warns(UserWarning, match="where this run kept the files of its interventions"):
                    fit(tmp_path, saves(tmp_path / "s2"), logger=logger, seed=2, ckpt_path=tmp_path / CHECKPOINT)

    fit(tmp_path, saves(tmp_path / "saved"), Trains(tmp_path, killed=False))
    rows, copied = (ledger_of(tmp_path / version / "failures").rows for version in ("x", "y"))
    both = [row for row in rows if row.epoch <= 2]
    assert copied[: len(both)] == both
    assert not ledger_of(tmp_path / "x" / "failures").without_own_image
    assert not ledger_of(tmp_path / "y" / "failures").without_own_image


def test_resume__images_of_other_rows_are_left_out_of_the_plan_and_named(tmp_path):
    fit(tmp_path, saves(tmp_path / "saved"))
    ledger = ledger_of(tmp_path / "x" / "failures")
    of_epoch_2 = [row for row in ledger.images if ledger[row].epoch == 2]
    one = next(row for row in of_epoch_2 if ledger[row].class_index == 1)
    other = next(row for row in of_epoch_2 if ledger[row].class_index == 2)
    files = [ledger.folder / str(ledger[row].file) for row in (one, other)]
    files[0].write_bytes(files[1].read_bytes())
    with pytest.warns(UserWarning, match=rf"1 of the \d+ generated images in .* are left out \(rows {one}\)"):
        fit(tmp_path, saves(tmp_path / "again"), ckpt_path=tmp_path / CHECKPOINT)
    report = json.loads((tmp_path / "x" / "failures" / "report.json").read_text())
    assert any(f"(rows {one})" in note for entry in report["interventions"] for note in entry.get("notes", []))


def test_folder__that_cannot_be_locked_is_said_and_used(tmp_path, monkeypatch):
    """The system's answer on a network file system without locks; none can be mounted here."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    failures = tmp_path / "x" / "failures"
    with pytest.warns(UserWarning, match=r"cannot be locked .* would go unnoticed"):
        fit(tmp_path, saves(tmp_path / "saved"))
    assert epochs_of(failures) == [0, 1, 2, 3]
    assert [path.name for path in (tmp_path / "x").glob("failures*")] == ["failures"]


# -- embed ---------------------------------------------------------------------------------------------------


def test_embed__a_second_command_for_the_same_folder_is_refused(tmp_path):
    output = tmp_path / "pool"

    class Nested(LoggedEncoder):
        """Starts the same command again while it embeds."""

        def encode_images(self, images):
            if not self.embedded:
                self.embedded = 1
                again = trainer(LoggedEncoder(tmp_path))
                with pytest.raises(ConfigurationError, match=r"Another `embed` is writing to .* --output"):
                    again.embed(OracleClassifier(), Pool(Images(40, seed=7)), output=output, shard_size=20)
            return super().encode_images(images)

    trainer(Nested(tmp_path)).embed(OracleClassifier(), Pool(Images(40, seed=7)), output=output, shard_size=20)
    assert (output / "pool.json").exists()
    assert not (output / LOCK_FILE).exists()
    trainer(LoggedEncoder(tmp_path)).embed(OracleClassifier(), Pool(Images(40, seed=7)), output=output, shard_size=20)
