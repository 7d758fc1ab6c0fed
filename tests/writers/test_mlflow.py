"""MLflow on a local file store: what was written is read back from the store."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.writers import MLFlowWriter, writers_for
from lightning_failures.writers.class_table import COLUMNS, EXAMPLE_COLUMNS
from lightning_failures.writers.mlflow import MAX_EXAMPLES
from tests.helpers.toy import OracleClassifier, callback, loader, trainer
from tests.writers.analyses import NASTY, report, table, thumbnails

pytest.importorskip("mlflow")
pytestmark = [
    pytest.mark.slow,  # importing mlflow takes seconds
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of mlflow and what it imports
]


@pytest.fixture
def logger(tmp_path, monkeypatch, request):
    """A run of one of both namespaces in a store of its own."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions want a database
    package = getattr(request, "param", "lightning.pytorch")
    loggers = pytest.importorskip(f"{package}.loggers")
    return loggers.MLFlowLogger("tests", tracking_uri=(tmp_path / "store").as_uri())


def artifacts(logger) -> Path:
    (folder,) = Path(logger.save_dir).glob(f"*/{logger.run_id}/artifacts")
    return folder


def gallery(of, count: int = 2) -> Gallery:
    tile = Tile(torch.full((3, 20, 30), 200, dtype=torch.uint8))
    names = ("classes/cat", "features/17", "classes/dog")
    return Gallery(tuple(Picture(name, (Row("", (tile,)),), NASTY) for name in names[:count]), thumbnails(of))


@pytest.mark.parametrize("logger", ["lightning.pytorch", "pytorch_lightning"], indirect=True)
def test_run__is_read_back(tmp_path, logger):
    of, folder = table(), tmp_path / "failures"
    files, writer = writers_for([logger], folder)
    assert isinstance(writer, MLFlowWriter)
    for epoch, step in ((3, 250), (4, 300)):
        result = report(table=of, epoch=epoch, global_step=step, notes=("A sample.",))
        files.write(result, step)
        writer.write(result, step)
        files.show(result, gallery(of), step)
        writer.show(result, gallery(of), step)

    store = artifacts(logger)
    classes = json.loads((store / "failures" / "table.json").read_text())
    assert classes["columns"] == list(COLUMNS)
    assert [row[0] for row in classes["data"]] == [3, 3, 4, 4]
    assert [row[COLUMNS.index("change")] for row in classes["data"]] == [None, None, 0.0, 0.0]
    examples = json.loads((store / "failures" / "examples.json").read_text())
    assert examples["columns"] == [*EXAMPLE_COLUMNS]
    assert len(examples["data"]) == 12
    assert "A sample." in (store / "failures" / "report.md").read_text()
    for name in ("report.html", "report.json", "gallery.json", "examples.safetensors"):
        assert (store / "failures" / name).read_bytes() == (folder / name).read_bytes()

    pictures = sorted((store / "images").glob("*.png"))
    assert len(pictures) == 4  # of two analyses
    assert sum("classes-cat" in path.name for path in pictures) == 2
    with Image.open(pictures[0]) as image:
        assert np.asarray(image).ndim == 3
    tags = logger.experiment.get_run(logger.run_id).data.tags
    assert [one["path"] for one in json.loads(tags["mlflow.loggedArtifacts"]) if one["type"] == "table"] == [
        "failures/table.json",
        "failures/examples.json",
    ]


def test_tables__are_those_of_mlflow(tmp_path, logger):
    pytest.importorskip("pandas")
    MLFlowWriter(logger, tmp_path).write(report(table=table()), 1)
    found = logger.experiment.load_table(logger.experiment_id, "failures/table.json", run_ids=[logger.run_id])
    assert found["class"].tolist()[0] == "cat"
    assert found["error_rate"].tolist() == pytest.approx([0.5, 0.2])


def test_tables__a_resumed_training_adds_rows(tmp_path, logger):
    MLFlowWriter(logger, tmp_path).write(report(epoch=1), 1)
    MLFlowWriter(logger, tmp_path).write(report(epoch=2), 2)  # another process
    path = artifacts(logger) / "failures" / "table.json"
    assert [row[0] for row in json.loads(path.read_text())["data"]] == [1, 1, 2, 2]
    path.write_text("{")
    MLFlowWriter(logger, tmp_path).write(report(epoch=3), 3)
    assert [row[0] for row in json.loads(path.read_text())["data"]] == [3, 3]


def test_examples__are_bounded(tmp_path, logger):
    of = table(MAX_EXAMPLES + 50)
    MLFlowWriter(logger, tmp_path).show(report(table=of), gallery(of, 0), 1)
    rows = json.loads((artifacts(logger) / "failures" / "examples.json").read_text())["data"]
    assert len(rows) == MAX_EXAMPLES
    assert rows[0][1] == int(of.ids[of.failed][0])


def test_write_verdict__logs_the_report_again(tmp_path, logger):
    writer, result = MLFlowWriter(logger, tmp_path), report(global_step=9)
    writer.write(result, 9)
    judged = result.with_report(interventions=({"kind": "Upweight", "epoch": 3, "verdict": "helped", "classes": []},))
    writer.write_verdict(judged, 9)
    assert "helped" in (artifacts(logger) / "failures" / "report.md").read_text()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_fit__metrics_page_and_pictures(tmp_path, logger):
    run = trainer(tmp_path, callback(pictures=True), logger=logger, max_epochs=2)
    run.fit(OracleClassifier(), loader(), loader())
    data = logger.experiment.get_run(logger.run_id).data
    assert data.metrics["failures/cv_score_mean"] > 0.6
    store = artifacts(logger)
    assert b"<html" in (store / "failures" / "report.html").read_bytes()
    assert any("classes-class" in path.name for path in (store / "images").glob("*.png"))
