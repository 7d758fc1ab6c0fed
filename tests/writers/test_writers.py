"""Sinks against the real loggers: what was written is read back."""

from __future__ import annotations

import csv
import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.report import ClassReport, GroupReport, LeafReport, ValueReport
from lightning_failures.directions import FailureDirections, fit_failure_directions
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.writers import CSVWriter, FileWriter, TensorBoardWriter, each_writer, writers_for
from lightning_failures.writers.files import file_name
from tests.helpers.results import analysed

NASTY = "../../<script>|*x*\n🙂\udcff" + "y" * 10_000


def report(epoch: int = 3, **options) -> AnalysisResult:
    classes = (
        ClassReport("cat", 40, accuracy=0.9, cv_score=0.6, p_value=0.4),
        ClassReport(
            "dog",
            40,
            accuracy=0.5,
            cv_score=0.9,
            p_value=0.001,
            pattern=True,
            hardest_captions=("a photo of a dog in the snow",),
            easiest_captions=("a photo of a dog on grass",),
            enrichment=(ValueReport("weather", "snow", 9, 8, 8, 3, 0.2, 0.8, 0.8, (0.5, 0.9), 0.3),),
        ),
        ClassReport(NASTY, 3, accuracy=None, skipped="2 failures"),
    )
    leaf = LeafReport("feature 17 > 0.36", 20, 0.8, 0.7, 0.56, True, (0.5, 0.9))
    group = GroupReport("label", "dog", 40, 0.5, 0.7, 0.6, 0.1, 0.02, True, None, (leaf,))
    return analysed(83, 0.7, classes, (group,), summary={"cv_score_mean": 0.75}, epoch=epoch, **options)


def picture(tag: str, image: torch.Tensor, caption: str = "") -> Picture:
    return Picture(tag, (Row("", (Tile(image),)),), caption)


def pictures(count: int = 3) -> Gallery:
    image = torch.zeros(3, 20, 30, dtype=torch.uint8)
    image[0] = 200
    drawn = picture("classes/dog", image, "dog"), picture("classes/cat", image.flip(0), "cat")
    return Gallery((*drawn, picture(f"rules/{NASTY}", image))[:count])


@pytest.mark.slow
def test_file_sink__keeps_every_analysis_and_the_last(tmp_path):
    sink = FileWriter(tmp_path / "failures")
    sink.write(report(3), 250)
    sink.show(report(3), pictures(), 250)
    sink.write(report(4), 300)
    first = tmp_path / "failures" / "epoch=0003-step=000250"
    assert json.loads((first / "report.json").read_text())["epoch"] == 3
    assert json.loads((tmp_path / "failures" / "report.json").read_text()) == report(4).to_dict()
    written = sorted((first / "images").iterdir())
    assert len(written) == 3
    assert np.array(Image.open(first / "images" / "classes-dog.png"))[50, 50].tolist() == [200, 0, 0]
    markdown = (first / "report.md").read_text()
    assert "feature 17" in markdown
    assert "<script>" not in markdown


def test_file_sink__directions_of_the_last_report(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 4))
    fitted = fit_failure_directions(x, np.zeros(60, dtype=int), x[:, 0] > 0, permutations=9)
    sink = FileWriter(tmp_path)
    sink.write(report(3, directions=fitted), 250)
    stored = FailureDirections.load(tmp_path / "directions.safetensors")
    assert torch.equal(stored.weight, fitted.weight)
    sink.write(report(4), 300)  # grading only: those of another epoch would be taken for its own
    assert not (tmp_path / "directions.safetensors").exists()


def test_file_sink__hostile_names_stay_inside(tmp_path):
    FileWriter(tmp_path / "a" / "failures").write(report(), 0)
    FileWriter(tmp_path / "a" / "failures").show(report(), pictures(), 0)
    outside = [p for p in tmp_path.rglob("*") if p.is_file() and (tmp_path / "a" / "failures") not in p.parents]
    assert outside == []


@pytest.mark.parametrize("text", ["..", "/etc/passwd", "", "a" * 10_000, "con\x00", "🙂"])
def test_file_name__is_one_plain_component(text):
    name = file_name(text)
    assert Path(name).name == name
    assert name not in {"", ".", ".."}
    assert len(name) < 100


def test_file_name__differs_where_texts_differ():
    texts = ["a/b", "a-b", "a b", "A/B", "a//b"]
    assert len({file_name(text) for text in texts}) == len(texts)


def test_tensorboard_sink__read_back(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    sink = TensorBoardWriter(logger)
    sink.write(report(3), 250)
    sink.show(report(3), pictures(2), 250)
    sink.write(report(4), 300)
    sink.show(report(4), pictures(2), 300)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert {"failures/classes/dog", "failures/classes/cat"} == set(events.Tags()["images"])
    assert [event.step for event in events.Images("failures/classes/dog")] == [250, 300]
    table = events.Tensors("failures/table/text_summary")[0].tensor_proto.string_val[0].decode()
    assert table.index("dog") < table.index("cat")  # ranked by error
    assert "<script>" not in table
    assert "feature 17" in events.Tensors("failures/rules/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "weather = snow" in events.Tensors("failures/enrichment/text_summary")[0].tensor_proto.string_val[0].decode()


def test_tensorboard_sink__further_loaders_have_their_own_tags(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    TensorBoardWriter(logger).write(report(dataloader=1), 1)
    TensorBoardWriter(logger).show(report(dataloader=1), pictures(1), 1)
    logger.experiment.close()
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Tags()["images"] == ["failures/dataloader_1/classes/dog"]


def test_csv_sink__one_row_a_class_and_analysis(tmp_path):
    sink = CSVWriter(tmp_path)
    for epoch, step in ((3, 250), (4, 300), (4, 300)):
        sink.write(report(epoch), step)
    with (tmp_path / "failure_classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["name"][:3]) for row in rows] == [
        (epoch, name) for epoch in ("3", "4") for name in ("cat", "dog", "../")
    ]
    assert rows[1]["hardest_caption"] == "a photo of a dog in the snow"
    assert rows[0]["aler"] == ""


def test_stage__a_test_takes_the_place_of_no_validation(tmp_path):
    for stage in ("fit", "test"):
        FileWriter(tmp_path).write(report(stage=stage), 250)
        CSVWriter(tmp_path).write(report(stage=stage), 250)
    kept = [
        json.loads((tmp_path / f"{name}epoch=0003-step=000250" / "report.json").read_text()) for name in ("", "test-")
    ]
    assert [one["stage"] for one in kept] == ["fit", "test"]
    with (tmp_path / "failure_classes.csv").open(newline="") as file:
        assert [row["stage"] for row in csv.DictReader(file)] == ["fit"] * 3 + ["test"] * 3


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t=", " =", "\uff1d"])
def test_csv_sink__no_text_of_a_user_is_a_formula(tmp_path, sign):
    words = f"{sign}HYPERLINK(0)"
    captions = {"hardest_captions": (words,), "easiest_captions": (words,)}
    entry = ClassReport(words, 40, accuracy=0.5, cv_score=0.7, pattern=True, skipped=words, **captions)
    CSVWriter(tmp_path).write(report().with_report(classes=(entry, replace(entry, name="a-b=c"))), -1)
    with (tmp_path / "failure_classes.csv").open(newline="") as file:
        guarded, harmless = csv.DictReader(file)
    for column in ("name", "hardest_caption", "easiest_caption", "skipped"):
        assert guarded[column] == f"'{words}"
    assert harmless["name"] == "a-b=c"
    assert guarded["step"] == "-1"  # a number stays one


def test_csv_sink__keeps_a_table_of_another_version(tmp_path):
    (tmp_path / "failure_classes.csv").write_text("a,b\n1,2\n")
    CSVWriter(tmp_path).write(report(), 1)
    assert (tmp_path / "failure_classes.old.csv").read_text() == "a,b\n1,2\n"
    assert len((tmp_path / "failure_classes.csv").read_text().splitlines()) > 3


def test_csv_sink__a_long_table_takes_no_memory(tmp_path):
    """A week of analyses of a thousand classes is half a million rows."""
    sink, path, short = (
        CSVWriter(tmp_path),
        tmp_path / "failure_classes.csv",
        report(0).with_report(classes=report().classes[:2]),
    )
    sink.write(short, 0)
    header, row = path.read_text().splitlines()[:2]
    path.write_text("\n".join([header, *(row.replace(",0,0,", f",{step},{step},") for step in range(20_000)), ""]))
    sink.write(short, 30_000)  # what is made once is made
    tracemalloc.start()
    sink.write(short, 40_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 20_000 + 2 * 2
    assert peak < path.stat().st_size / 2


def test_csv_sink__a_damaged_table_is_gone_on_with(tmp_path):
    sink, path = CSVWriter(tmp_path), tmp_path / "failure_classes.csv"
    sink.write(report(3), 250)
    path.write_bytes(path.read_bytes()[:-20_000] + b"\xff\n\n")  # half a row, and bytes that are no text
    sink.write(report(4), 300)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows][-3:] == ["4"] * 3
    assert all(None not in row.values() for row in rows)


def test_sinks_for__picks_by_logger_of_either_namespace(tmp_path):
    pl = pytest.importorskip("pytorch_lightning")
    loggers = [
        TensorBoardLogger(tmp_path),
        pl.loggers.TensorBoardLogger(tmp_path),
        CSVLogger(tmp_path),
        pl.loggers.CSVLogger(tmp_path),
    ]
    kinds = [type(sink) for sink in writers_for(loggers, tmp_path)]
    assert kinds == [FileWriter, TensorBoardWriter, TensorBoardWriter, CSVWriter, CSVWriter]


def test_sinks_for__unknown_logger_is_told(tmp_path):
    class OtherLogger:
        pass

    with pytest.warns(UserWarning, match="OtherLogger"):
        assert [type(sink) for sink in writers_for([OtherLogger()], tmp_path)] == [FileWriter]


def test_each_sink__one_failing_sink_stops_no_other(tmp_path):
    class Full:
        def write(self, report, step):
            raise OSError("no space left")

    full = Full()
    ((sink, error),) = each_writer([full, FileWriter(tmp_path)], lambda sink: sink.write(report(), 1))
    assert sink is full
    assert "no space" in str(error)
    assert (tmp_path / "report.json").is_file()
