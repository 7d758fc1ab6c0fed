"""What other packages can add, each from outside: a writer for a logger of their own, and a method."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from lightning_failures import methods as methods_room
from lightning_failures.analysis import AnalysisResult
from lightning_failures.analysis.method import Contribution, FitTask
from lightning_failures.doctor import examine
from lightning_failures.errors import ConfigurationError
from lightning_failures.methods import Method, methods_for, register_method
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.writers import FileWriter, Writer, WriterLimits, register_writer, registry, writers_for
from tests.helpers.results import analysed
from tests.helpers.toy import Classifier, OracleClassifier, callback, loader, trainer


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
    writer, result = WriterWithDefaults(), analysed(0, None, ())
    writer.show(result, Gallery(), 1)
    writer.write_verdict(result, 1)
    assert writer.limits() == WriterLimits("WriterWithDefaults")


def test_writer__of_a_base_class_serves_subclasses(tmp_path, registered):
    class OwnNotebookLogger(NotebookLogger):
        pass

    kinds = [type(writer) for writer in writers_for([OwnNotebookLogger()], tmp_path)]
    assert kinds == [FileWriter, NotebookWriter]


# -- a method --------------------------------------------------------------------------------------------------------


class FarthestFit:
    """Do examples far from the mean of their class fail more often? Each process looks at the classes that it owns."""

    name, by_prediction = "farthest", False

    def fit(self, task: FitTask) -> Contribution:
        labels, failed = task.grades.labels.numpy(), task.grades.failed.numpy()

        def work() -> dict[int, float]:
            gaps = {}
            for k in range(len(task.grades.class_names)):
                rows = np.flatnonzero((labels == k) & task.partition.rows)
                if task.partition.owns(k) and len(rows):
                    x = torch.as_tensor(task.values[rows]).float()
                    far = (x - x.mean(0)).norm(dim=1)
                    far = (far > far.median()).numpy()
                    gaps[k] = float(failed[rows][far].mean() - failed[rows][~far].mean())
            return gaps

        gaps = task.partition.merge_results(work)
        column = [gaps.get(k) for k in range(len(task.grades.class_names))]
        return Contribution(
            fitted=gaps,
            summary={"farthest_gap_mean": float(np.mean(list(gaps.values())))},
            columns={"gap of the farthest": column},
            section={"classes": len(gaps)},
            notes=("Distances were compared.",),
        )


class Farthest(Method):
    """The third method."""

    name, title, remedy = "farthest", "distances", "FailureModes(encoder=...)"
    aggregates = {"farthest_gap_mean": 1.0}  # noqa: RUF012

    def fitter(self, callback) -> FarthestFit:
        return FarthestFit()

    def pictures(self, result: AnalysisResult, *, worst_k: int) -> Sequence[Picture]:
        height = 4 * len(result.fitted["farthest"])
        return [Picture("farthest", (Row("", (Tile(torch.zeros(3, height, 4, dtype=torch.uint8)),)),), "distances")]

    def problems(self, encoder) -> Iterable[str]:
        return () if encoder.dim > 1 else ("one dimension is too few",)


@pytest.fixture
def third_method(monkeypatch):
    """Registers the method for one test."""
    monkeypatch.setattr(methods_room, "_METHODS", list(methods_room._METHODS))
    register_method(Farthest())


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_method__registered_from_outside(tmp_path, third_method):
    modes = callback(pictures=True)
    keep = ModelCheckpoint(tmp_path / "best", monitor="failures/farthest_gap_mean", mode="min")
    run = trainer(tmp_path, modes, keep, max_epochs=2, enable_checkpointing=True)
    run.fit(OracleClassifier(), loader(), loader())
    result = modes.last_report
    assert set(result.fitted["farthest"]) == {0, 1, 2, 3}
    assert keep.best_model_score is not None
    assert result.summary["farthest_gap_mean"] == pytest.approx(np.mean(list(result.fitted["farthest"].values())))
    assert "Distances were compared." in result.notes
    assert "farthest" in result.timings

    # what is on disk: the section, the column of the table of classes, the picture
    (folder,) = [path.parent for path in tmp_path.rglob("gallery.json")]
    written = json.loads((folder / "report.json").read_text())["methods"]["farthest"]
    assert written["classes"] == 4
    assert written["columns"]["gap of the farthest"] == [result.fitted["farthest"][k] for k in range(4)]
    page = next(folder.glob("epoch=0001-*/report.md")).read_text()
    assert "| gap of the farthest |" in page
    assert "images/farthest.png" in page
    assert "farthest" in [picture["tag"] for picture in json.loads((folder / "gallery.json").read_text())["pictures"]]

    # doctor asks it, and times its fit
    model = OracleClassifier()
    model.train_dataloader = model.val_dataloader = loader
    findings = list(examine(trainer(tmp_path, callback(pictures=True), max_epochs=2), model))
    assert [finding for finding in findings if finding.status == "problem"] == []
    assert [one.message for one in findings if one.check == "methods"] == ["distances works with colours"]


class OnTheModel(Farthest):
    """A method on the features of the live model."""

    name, source = "on_the_model", "penultimate"
    aggregates = {}  # noqa: RUF012

    def fitter(self, callback):
        return Recorder()


class Recorder:
    """Contributes the features that it was given."""

    name, by_prediction = "on_the_model", False

    def fit(self, task: FitTask) -> Contribution:
        return Contribution(torch.as_tensor(task.values.all()), columns={"examples": [len(task.grades)] * 4})


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_method__on_penultimate_features_of_the_live_model(tmp_path, monkeypatch):
    monkeypatch.setattr(methods_room, "_METHODS", list(methods_room._METHODS))
    method = OnTheModel()
    method.pictures = lambda result, *, worst_k: ()
    register_method(method)
    modes, model, data = callback(encoder=None), Classifier(), loader()
    trainer(tmp_path, modes).fit(model, loader(), data)
    images = torch.stack([image for image, _ in data.dataset])
    torch.testing.assert_close(modes.last_report.fitted["on_the_model"], images.flatten(1))  # the input of its Linear


def test_method__off_is_refused_as_monitor(tmp_path, third_method):
    modes = callback(encoder=None)
    keep = ModelCheckpoint(tmp_path, monitor="failures/farthest_gap_mean")
    with pytest.raises(ConfigurationError, match=r"needs distances: give FailureModes\(encoder=...\)"):
        trainer(tmp_path, modes, keep, enable_checkpointing=True).fit(OracleClassifier(), loader(), loader())


def test_method__names_are_checked(third_method):
    class Nameless(Farthest):
        name = "trees"

    with pytest.raises(ConfigurationError, match=r"Nameless\.name must be an identifier other than"):
        register_method(Nameless())
    register_method(Farthest())
    assert [method.name for method in methods_for(callback())] == ["directions", "farthest"]
