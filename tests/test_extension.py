"""What other packages can add, each from outside: a writer for a logger of their own."""

from __future__ import annotations

import pytest
from lightning.pytorch.loggers import Logger

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.report import FailureReport
from lightning_failures.doctor import examine
from lightning_failures.report.gallery import Gallery
from lightning_failures.writers import FileWriter, Writer, WriterLimits, register_writer, registry, writers_for
from tests.helpers.toy import OracleClassifier, callback, loader, trainer


class NotebookLogger(Logger):
    """A logger of another package."""

    name, version = "notebook", 0

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[str, int]] = []
        self.limits_asked = 0

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


class NotebookWriter(Writer):
    """The fourth writer: remembers what it was called with."""

    def __init__(self, logger: NotebookLogger) -> None:
        self.logger = logger

    def write(self, result: AnalysisResult, step: int) -> None:
        self.logger.entries.append(("write", step))

    def show(self, result: AnalysisResult, gallery: Gallery, step: int) -> None:
        assert gallery.pictures
        self.logger.entries.append(("show", step))

    def limits(self) -> WriterLimits:
        self.logger.limits_asked += 1
        return WriterLimits("Notebook", pictures=10, examples=20, examples_in="its margin")


class WriterWithDefaults(Writer):
    """Implements no more than it has to."""

    def write(self, result: AnalysisResult, step: int) -> None:
        pass


@pytest.fixture
def registered(monkeypatch):
    """Registers the writer for one test."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    register_writer("NotebookLogger", lambda logger, folder: NotebookWriter(logger))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_writer__registered_from_outside(tmp_path, registered):
    logger = NotebookLogger()
    run = trainer(tmp_path, callback(pictures=True), logger=logger, max_epochs=2)
    run.fit(OracleClassifier(), loader(), loader())
    assert logger.entries == [("write", 10), ("write", 20), ("show", 20)]

    model = OracleClassifier()
    model.train_dataloader = model.val_dataloader = loader
    run = trainer(tmp_path, callback(pictures=True), logger=logger, max_epochs=2)
    findings = list(examine(run, model))
    assert [finding for finding in findings if finding.status == "problem"] == []
    assert logger.limits_asked == 1
    (said,) = [finding.message for finding in findings if finding.message.startswith("Notebook")]
    assert "up to 20 examples in its margin" in said
    assert len(logger.entries) == 3  # examined, not used


def test_writer__defaults_are_safe(tmp_path, registered):
    writer, result = WriterWithDefaults(), AnalysisResult(FailureReport(0, None, ()))
    writer.show(result, Gallery(), 1)
    writer.write_verdict(result, 1)
    assert writer.limits() == WriterLimits("WriterWithDefaults")


def test_writer__of_a_base_class_serves_subclasses(tmp_path, registered):
    class OwnNotebookLogger(NotebookLogger):
        pass

    kinds = [type(writer) for writer in writers_for([OwnNotebookLogger()], tmp_path)]
    assert kinds == [FileWriter, NotebookWriter]
