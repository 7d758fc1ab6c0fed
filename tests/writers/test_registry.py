"""The writer of each logger."""

from __future__ import annotations

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_failures.writers import CSVWriter, FileWriter, TensorBoardWriter, writers_for


def test_writers_for__picks_by_logger_of_either_namespace(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")
    loggers = [
        TensorBoardLogger(tmp_path),
        pl.loggers.TensorBoardLogger(tmp_path),
        CSVLogger(tmp_path),
        pl.loggers.CSVLogger(tmp_path),
    ]
    kinds = [type(writer) for writer in writers_for(loggers, tmp_path)]
    assert kinds == [FileWriter, TensorBoardWriter, TensorBoardWriter, CSVWriter, CSVWriter]


def test_writers_for__unknown_logger_is_warned_of(tmp_path):
    class OtherLogger:
        pass

    with pytest.warns(UserWarning, match="OtherLogger"):
        assert [type(writer) for writer in writers_for([OtherLogger()], tmp_path)] == [FileWriter]
