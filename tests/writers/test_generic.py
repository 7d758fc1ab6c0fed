"""The writer for any logger that has ``log_image`` or ``log_table``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.writers import FileWriter, GenericWriter, WriterLimits, writers_for
from lightning_failures.writers.class_table import COLUMNS, EXAMPLE_COLUMNS
from tests.helpers.toy import OracleClassifier, callback, loader, trainer
from tests.writers.analyses import report, table, thumbnails


class PlainLogger(Logger):
    """A logger as a company has its own."""

    name, version = "plain", "0"

    def __init__(self) -> None:
        self.logged: list[tuple[str, str, Any, int | None]] = []
        self.metrics: dict[str, float] = {}

    def log_metrics(self, metrics, step=None):
        self.metrics |= metrics

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class TableLogger(PlainLogger):
    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None) -> None:
        assert all(len(row) == len(columns) for row in data)
        self.logged.append(("table", key, (columns, data), step))


class PictureLogger(TableLogger):
    def log_image(self, key: str, images: list[np.ndarray], step: int | None = None) -> None:
        assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in images)
        self.logged.append(("image", key, images, step))


def gallery(of) -> Gallery:
    tile = Tile(torch.full((3, 20, 30), 200, dtype=torch.uint8))
    return Gallery((Picture("classes/cat", (Row("", (tile,)),)),), thumbnails(of))


def test_writer__tables_and_pictures(tmp_path):
    logger, of = PictureLogger(), table()
    _, writer = writers_for([logger], tmp_path)
    assert isinstance(writer, GenericWriter)
    writer.write(report(table=of), 7)
    writer.show(report(table=of), gallery(of), 7)
    writer.write_verdict(report(table=of), 8)
    assert [(kind, key, step) for kind, key, _, step in logger.logged] == [
        ("table", "failures/table", 7),
        ("table", "failures/report", 7),
        ("image", "failures/classes/cat", 7),
        ("table", "failures/examples", 7),
        ("table", "failures/report", 8),
    ]
    columns, rows = logger.logged[0][2]
    assert (columns, rows[0][1]) == (list(COLUMNS), "cat")
    columns, rows = logger.logged[3][2]
    assert (columns, len(rows)) == ([*EXAMPLE_COLUMNS], 12)


def test_writer__uses_what_the_logger_has(tmp_path):
    logger, of = TableLogger(), table()
    _, writer = writers_for([logger], tmp_path)
    writer.write(report(table=of), 7)
    writer.show(report(table=of), gallery(of), 7)
    assert {kind for kind, *_ in logger.logged} == {"table"}
    assert writer.limits().pictures == 0

    class PicturesOnly(PlainLogger):
        log_image = PictureLogger.log_image

    (_, writer) = writers_for([PicturesOnly()], tmp_path)
    writer.write(report(table=of), 7)
    writer.show(report(table=of), gallery(of), 7)
    assert [kind for kind, *_ in writer.logger.logged] == ["image"]
    assert writer.limits() == WriterLimits(
        "PicturesOnly", "it has no log_table, so it gets scalars and pictures", pictures=108, classes=0, examples=0
    )


def test_writer__loggers_without_either_get_the_warning(tmp_path):
    with pytest.warns(UserWarning, match="no writer for PlainLogger"):
        assert [type(writer) for writer in writers_for([PlainLogger()], tmp_path)] == [FileWriter]
    assert [type(writer) for writer in writers_for([DummyLogger()], tmp_path)] == [FileWriter]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_fit__logs_scalars_tables_and_pictures(tmp_path):
    logger = PictureLogger()
    trainer(tmp_path, callback(pictures=True), logger=logger).fit(OracleClassifier(), loader(), loader())
    assert logger.metrics["failures/cv_score_mean"] > 0.6
    assert {"failures/table", "failures/report", "failures/examples", "failures/classes/class 0"} <= {
        key for _, key, *_ in logger.logged
    }
