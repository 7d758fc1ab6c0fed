"""TensorBoard: what was written is read back from event files and from the projector's files."""

from __future__ import annotations

import contextlib
import csv
import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.report import ClassReport
from lightning_failures.report.gallery import Gallery, Picture, Row, Thumbnails, Tile
from lightning_failures.trainer.metric_keys import AGGREGATES, DECISION_KEYS, GRADE_AGGREGATES
from lightning_failures.writers import TensorBoardWriter
from lightning_failures.writers.layout import CHARTS, chart_layout, written_layout
from tests.helpers.results import analysed

NASTY = "dog\t=1\r\n<b>\x00\u2028\udcff"
ENTRY = ClassReport("cat", 40, accuracy=0.5, cv_score=0.7, p_value=0.01, aler=0.4)
SUMMARY = {"accuracy": 0.5, "coverage": 1.0, "cv_score_mean": 0.7}


def report(**options) -> AnalysisResult:
    classes = (ENTRY, ClassReport(NASTY, 40, accuracy=0.8))
    return analysed(80, 0.65, **({"classes": classes, "summary": SUMMARY, "epoch": 3, "stage": "fit"} | options))


def table(n: int = 12, names: tuple[str, ...] = ("cat", NASTY)) -> ExampleTable:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    guesses = (labels + (torch.arange(n) % 3 == 0)) % 2
    grades = Grades(torch.arange(n) * 5, labels, guesses, torch.rand(n, generator=rng), names)
    values = torch.linspace(-1, 1, n)
    values[1] = float("nan")
    return ExampleTable.of(grades, values, {})


def thumbnails(of: ExampleTable, dim: int = 4) -> Thumbnails:
    n = len(of)
    images = torch.zeros(n, 3, 8, 8, dtype=torch.uint8) + torch.arange(n, dtype=torch.uint8)[:, None, None, None]
    return Thumbnails(of.ids, images, torch.arange(n * dim).view(n, dim).float() / 7)


def read_back(folder: str | Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def layouts(folder: str | Path) -> list[dict[str, list[str]]]:
    """Category -> charts, of each layout that was written."""
    written = []
    for event in read_back(folder).Tensors("custom_scalars__config__"):
        layout = Layout.FromString(event.tensor_proto.string_val[0])
        written.append({one.title: [chart.title for chart in one.chart] for one in layout.category})
    return written


# -- the layout of scalars -----------------------------------------------------------------------------------


def test_layout__every_key_that_is_logged_has_one_chart():
    keys = [
        *AGGREGATES,
        *GRADE_AGGREGATES,
        *DECISION_KEYS,
        *(key.replace("decision", "report") for key in DECISION_KEYS),
    ]
    keys += [f"class/a.b/{key}" for key in ("accuracy", "cv_score", "p_value", "aler")]
    everything = {name for _, _, names in CHARTS for name in names}
    tags = [tag for charts in chart_layout(everything).values() for _, tags in charts.values() for tag in tags]
    for key in keys:
        for logged in (f"failures/{key}", f"my-run-failures/{key}/dataloader_12"):
            assert sum(re.match(tag, logged) is not None for tag in tags) == 1, logged
    for other in (
        "failures/accuracy_of_mine",
        "failuresX/accuracy",
        "val/failures/accuracy",
        "failures/class/accuracy",
    ):
        assert not any(re.match(tag, other) for tag in tags), other


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_layout__written_once_and_again_with_new_keys(tmp_path, package):
    logger = pytest.importorskip(f"{package}.loggers").TensorBoardLogger(tmp_path)
    sink = TensorBoardWriter(logger)
    for step in (1, 2):
        sink.write(report(), step)
    grades, classes = (
        ["accuracy and coverage", "validations since the last analysis"],
        ["accuracy", "CV score", "p-value", "ALER"],
    )
    first = {
        "failures: grades": grades,
        "failures: directions": ["strength of the patterns (CV score)"],
        "failures: worst classes": classes,
    }
    assert layouts(logger.log_dir) == [first]
    sink.write(report(summary={"valid_leaf_fraction": 0.5, "report/accuracy": 0.5}, classes=()), 3)
    sink.write(report(classes=()), 4)  # what is not defined any more is laid out still
    assert layouts(logger.log_dir) == [
        first,
        {
            "failures: grades": grades,
            "failures: directions": ["strength of the patterns (CV score)"],
            "failures: trees": ["share of groups with a valid leaf"],
            "failures: worst classes": classes,
            "failures: interventions": ["report part"],
        },
    ]
    logger.experiment.close()


def test_layout__that_of_the_user_stays(tmp_path):
    """TensorBoard shows the last layout of a run, so ours holds the user's too, also after a resume."""
    mine = {"losses": {"both": ["Multiline", ["train_loss", "val_loss"]], "band": ["Margin", ["a", "b", "c"]]}}
    for start in (1, 10):
        logger = TensorBoardLogger(tmp_path, version=0)
        for step in range(start, start + 5):
            logger.log_metrics({"val_loss": 0.1}, step)
        if start == 1:
            logger.experiment.add_custom_scalars(mine)
        TensorBoardWriter(logger).write(report(), start + 5)
        logger.experiment.close()
    assert layouts(logger.log_dir)[0].keys() == mine.keys()
    (again,) = layouts(logger.log_dir)[1:]  # after the resume it was there
    assert list(again) == ["losses", "failures: grades", "failures: directions", "failures: worst classes"]
    assert written_layout(Path(logger.log_dir))["losses"] == mine["losses"]
    logger = TensorBoardLogger(tmp_path, version=0)
    logger.experiment.add_custom_scalars(mine)  # in the place of ours
    TensorBoardWriter(logger).write(report(), 20)
    logger.experiment.close()
    assert layouts(logger.log_dir)[-1] == again


def test_layout__two_loaders_share_one(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    TensorBoardWriter(logger).write(report(summary={"accuracy": 0.5, "report/accuracy": 0.4, "new": 1.0}), 1)
    TensorBoardWriter(logger).write(report(summary={"accuracy": 0.5, "flagged_fraction": 0.4}, dataloader=1), 1)
    TensorBoardWriter(logger).write(report(summary={"new": 0.5}), 1)  # nothing new to lay out
    logger.experiment.close()
    _, last = layouts(logger.log_dir)
    assert last["failures: interventions"] == ["report part"]
    assert last["failures: directions"] == ["share flagged"]


def test_layout__damaged_event_files_hold_nothing(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    (tmp_path / "events.out.tfevents.2").write_bytes(b"\xff" * 40)
    (tmp_path / "events.out.tfevents.3").write_bytes(b"\x1e" + bytes(11) + b"?custom_scalars__config__?????" * 2)
    assert written_layout(tmp_path) == {}


# -- words ---------------------------------------------------------------------------------------------------


def test_write__change_since_the_last_analysis(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    sink = TensorBoardWriter(logger)
    sink.write(report(), 1)
    sink.write(report(dataloader=1), 1)  # of other examples: no change of these
    better = replace(ENTRY, accuracy=0.75)
    sink.write(report(classes=(better,), notes=("A sample of 5 %.",)), 2)
    logger.experiment.close()
    events = read_back(logger.log_dir)
    first, second = (e.tensor_proto.string_val[0].decode() for e in events.Tensors("failures/table/text_summary"))
    assert "change" not in first
    row = dict(zip(*([cell.strip() for cell in line.split("|")] for line in second.splitlines()[::2]), strict=True))
    assert (row["class"], row["examples"], row["error rate"], row["change"]) == ("cat", "40", "0.250", "-0.250")
    assert "A sample of 5 %." in events.Tensors("failures/notes/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "No pattern" in events.Tensors("failures/trust/text_summary")[0].tensor_proto.string_val[0].decode()


@pytest.mark.parametrize("closed", [False, True])
def test_show__pictures_are_read_back(tmp_path, closed):
    logger = TensorBoardLogger(tmp_path)
    image = torch.zeros(3, 20, 30, dtype=torch.uint8) + torch.tensor([200, 100, 0], dtype=torch.uint8)[:, None, None]
    picture = Picture("classes/cat", (Row("hardest", (Tile(image, "-1.0"),)),))
    if closed:
        logger.experiment.close()
    TensorBoardWriter(logger).show(report(), Gallery((picture,)), 250)
    logger.experiment.close()
    (event,) = read_back(logger.log_dir).Images("failures/classes/cat")
    drawn = np.array(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 250
    assert (event.height, event.width, 3) == drawn.shape
    assert np.array_equal(drawn, picture.image.permute(1, 2, 0).numpy())


def test_conclude__the_verdict_is_told(tmp_path):
    acted = {"kind": "Upweight", "epoch": 3, "flagged": 4, "changes_training": True, "classes": []}
    logger = TensorBoardLogger(tmp_path)
    sink = TensorBoardWriter(logger)
    sink.write(report(interventions=(acted,)), 1)
    sink.write_verdict(report(interventions=(acted | {"verdict": {"outcome": "helped", "sentence": "It helped."}},)), 1)
    logger.experiment.close()
    told = read_back(logger.log_dir).Tensors("failures/interventions/text_summary")
    before, after = (event.tensor_proto.string_val[0].decode() for event in told)
    assert "not measured" in before
    assert "It helped." in after


# -- the projector -------------------------------------------------------------------------------------------


def projector(folder: str) -> ProjectorConfig:
    return text_format.Parse((Path(folder) / "projector_config.pbtxt").read_text(), ProjectorConfig())


def test_projector__points_labels_and_thumbnails_belong_together(tmp_path):
    logger = TensorBoardLogger(tmp_path, sub_dir="sub")
    of = table()
    thumbs = thumbnails(of)
    thumbs.embeddings[2] = float("nan")  # was not embedded
    TensorBoardWriter(logger).show(report(table=of), Gallery((), thumbs), 250)
    assert read_back(logger.log_dir).Tags()["images"] == []
    (info,) = projector(logger.log_dir).embeddings
    assert info.tensor_name == "failures/examples:00250"
    points = np.loadtxt(Path(logger.log_dir) / info.tensor_path, delimiter="\t", dtype=np.float32)
    kept = [k for k in range(12) if k != 2]
    assert list(info.tensor_shape) == [11, 4]
    np.testing.assert_allclose(points, thumbs.embeddings[kept], rtol=1e-5)
    lines = (Path(logger.log_dir) / info.metadata_path).read_text().split("\n")
    assert len(lines) == 1 + 11 + 1  # no name breaks a line
    rows = list(csv.DictReader(lines, delimiter="\t"))
    assert [int(row["id"]) for row in rows] == of.ids[kept].tolist()
    assert {row["label"] for row in rows} == {"cat", "dog =1 <b> ?"}
    assert [row["right"] == "no" for row in rows] == of.failed[kept].tolist()
    assert (rows[1]["decision value"], rows[1]["flagged"]) == ("", "")  # unknown, not 0
    assert [row["flagged"] == "yes" for row in rows] == of.flagged[kept].tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(of.confidence[kept].tolist(), rel=1e-3)
    sprite = np.array(Image.open(Path(logger.log_dir) / info.sprite.image_path))
    assert sprite.shape == (32, 32, 3)
    assert list(info.sprite.single_image_dim) == [8, 8]
    assert sprite[4::8, 4::8, 0].ravel()[:11].tolist() == kept
    logger.experiment.close()


def test_projector__a_later_analysis_takes_the_place_of_an_earlier(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    sink, of = TensorBoardWriter(logger), table()
    for step in (1, 2, 3, 4):
        sink.show(report(table=of), Gallery((), thumbnails(of)), step)
    TensorBoardWriter(logger).show(report(table=of, stage="test"), Gallery((), thumbnails(of)), 4)
    assert [one.tensor_name for one in projector(logger.log_dir).embeddings] == [
        "failures/examples:00004", "failures/test/examples:00004",
    ]  # fmt: skip
    stored = Counter(path.parent.parent.name for path in Path(logger.log_dir).rglob("tensors.tsv"))
    assert stored == {"failures-examples": 2, "failures-test-examples": 1}  # the last, and what a running server reads
    logger.experiment.close()


def test_projector__embeddings_of_the_user_stay(tmp_path):
    of = table()
    for version in (0, 0):  # the second time is a resume
        logger = TensorBoardLogger(tmp_path, version=version)
        with contextlib.redirect_stdout(io.StringIO()):
            logger.experiment.add_embedding(torch.eye(3), tag="before")
            TensorBoardWriter(logger).show(report(table=of), Gallery((), thumbnails(of)), 1)
            logger.experiment.add_embedding(torch.eye(3), tag="after")
        logger.experiment.close()
        names = [one.tensor_name for one in projector(logger.log_dir).embeddings]
        assert sorted(names) == ["after:00000", "before:00000", "failures/examples:00001"]


def test_projector__summary_writer_keeps_its_configuration_where_we_set_it(tmp_path):
    """Why :mod:`lightning_failures.writers.projector` sets a private attribute, and that this still works."""
    writer = TensorBoardLogger(tmp_path).experiment
    assert not hasattr(writer, "_projector_config")
    with contextlib.redirect_stdout(io.StringIO()):
        writer.add_embedding(torch.eye(3), tag="mine")
    assert isinstance(writer._projector_config, ProjectorConfig)
    assert [one.tensor_name for one in writer._projector_config.embeddings] == ["mine:00000"]
    writer._projector_config = ProjectorConfig()
    with contextlib.redirect_stdout(io.StringIO()):
        writer.add_embedding(torch.eye(3), tag="other")
    written = next(Path(writer.log_dir).rglob("projector_config.pbtxt")).read_text()
    assert "other:00000" in written
    assert "mine:00000" not in written  # the whole file is written from the attribute
    writer.close()


def test_projector__nothing_to_show(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    sink, of = TensorBoardWriter(logger), table()
    without = replace(thumbnails(of), embeddings=None)
    unknown = replace(thumbnails(of), embeddings=torch.full((12, 4), float("nan")))
    for gallery in (Gallery(), Gallery((), without), Gallery((), unknown)):
        sink.show(report(table=of), gallery, 1)
    sink.show(report(), Gallery((), thumbnails(of)), 1)  # no table
    assert not list(Path(logger.log_dir).glob("*projector*"))
    (Path(logger.log_dir) / "projector_config.pbtxt").write_bytes(b"\xff of something else {")
    sink.show(report(table=of), Gallery((), thumbnails(of)), 1)
    assert len(projector(logger.log_dir).embeddings) == 1
    logger.experiment.close()
