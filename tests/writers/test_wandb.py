"""W&B offline: what was written is read back from the folder of the run and from its log of transactions."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from lightning_failures.analysis import AnalysisResult
from lightning_failures.cli.report import report_text
from lightning_failures.data.report import FailureReport
from lightning_failures.report.gallery import Gallery, Picture, Row, Tile
from lightning_failures.report.run_folder import open_run
from lightning_failures.writers import FileWriter, TensorBoardWriter, WandbWriter, Writer, each_writer, writers_for
from lightning_failures.writers.wandb import EXAMPLE_COLUMNS, MAX_EXAMPLES
from tests.helpers.toy import OracleClassifier, callback, loader, trainer
from tests.report.html.a_run import a_run
from tests.writers.analyses import ENTRY, NASTY, read_back, report, table, thumbnails
from tests.writers.offline import transactions

pytestmark = pytest.mark.slow  # each starts wandb's own process


@pytest.fixture
def logger(tmp_path, monkeypatch, request):
    """A run of one of both namespaces, ended after the test."""
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    package = getattr(request, "param", "lightning.pytorch")
    loggers, wandb = pytest.importorskip(f"{package}.loggers"), pytest.importorskip("wandb")
    settings = wandb.Settings(silent=True, disable_git=True)
    yield loggers.WandbLogger(save_dir=tmp_path, offline=True, id=f"run.{uuid.uuid4().hex[:8]}", settings=settings)
    wandb.finish()


def finish() -> None:
    import wandb  # not when tests are collected

    wandb.finish()


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def staged(folder: Path, name: str) -> list[Path]:
    """The files of that name in all artifacts, as they wait to be uploaded."""
    return [
        Path(file.local_path)
        for record in transactions(folder)
        for file in record.artifact.manifest.contents
        if file.path == name
    ]


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of all tables of one key."""
    tables = [json.loads(path.read_text()) for path in staged(folder, f"failures/{name}.table.json")]
    return [dict(zip(table["columns"], row, strict=True)) for table in tables for row in table["data"]]


def gallery(of, count: int = 2) -> Gallery:
    tile = Tile(torch.full((3, 20, 30), 200, dtype=torch.uint8))
    names = ("classes/cat", "features/17", "classes/dog")
    return Gallery(tuple(Picture(name, (Row("", (tile,)),), NASTY) for name in names[:count]), thumbnails(of))


@pytest.mark.parametrize("logger", ["lightning.pytorch", "pytorch_lightning"], indirect=True)
def test_run__is_read_back(tmp_path, logger):
    of, folder = table(), tmp_path / "failures"
    files, writer = writers_for([logger], folder)
    assert isinstance(writer, WandbWriter)
    for epoch, step in ((3, 250), (4, 200)):  # steps that go back are no reason to lose anything
        result = report(table=of, epoch=epoch, global_step=step, notes=("A sample.",))
        files.write(result, step)
        writer.write(result, step)
        files.show(result, gallery(of), step)
        writer.show(result, gallery(of), step)
    assert logger.experiment.summary["failures/last/cv_score_mean"] == 0.7
    name = logger.experiment.id
    finish()
    records = transactions(tmp_path)

    history = [values(record.history.item) for record in records if record.history.item]
    assert [row["_step"] for row in history] == [0, 1, 2, 3]
    assert [row["trainer/global_step"] for row in history] == [250, 250, 200, 200]
    assert [row.get("failures/examples/nrows") for row in history] == [None, 12, None, 12]
    assert {"failures/table/path", "failures/trust/path", "failures/notes/path"} <= set(history[0])
    assert {"failures/classes/cat/path", "failures/features/17/path"} <= set(history[1])

    summary: dict[str, Any] = {}
    for record in records:
        summary |= values(record.summary.update)
    last = {key.removeprefix("failures/last/"): summary[key] for key in summary if "/last/" in key}
    assert last == result.summary | {"patterns": 0, "worst_class": "cat", "worst_class_error_rate": 0.5}

    artifacts = [record.artifact for record in records if record.artifact.type == "failure-report"]
    assert [one.name for one in artifacts] == [f"failures-{name}"] * 2  # two versions of one
    assert json.loads(artifacts[1].metadata)["epoch"] == 4
    held = {one.path: one for one in artifacts[1].manifest.contents}
    assert set(held) == {"report.html", "report.json", "gallery.json", "examples.safetensors"}  # of what there is
    assert {path for path in held if (folder / path).read_bytes() != Path(held[path].local_path).read_bytes()} == set()

    classes = written(tmp_path, "table")
    assert [(row["epoch"], row["class"], row["change"]) for row in classes] == [
        (3, "cat", None), (3, shown(NASTY), None), (4, "cat", 0.0), (4, shown(NASTY), 0.0),
    ]  # fmt: skip
    assert [row["error_rate"] for row in classes[:2]] == [0.5, pytest.approx(0.2)]


def shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def test_write_verdict__a_new_version_with_the_verdict(tmp_path, logger):
    folder, of = tmp_path / "failures", table()
    result = report(table=of, global_step=9)
    judged = result.with_report(interventions=({"kind": "Upweight", "epoch": 3, "verdict": "helped", "classes": []},))
    writers = writers_for([logger], folder)
    for writer in writers:
        writer.write(result, 9)
        writer.show(result, gallery(of), 9)
    page = (folder / "report.html").read_bytes()
    for writer in writers:
        writer.write_verdict(judged, 9)
    finish()
    assert (folder / "report.html").read_bytes() != page
    assert json.loads((folder / "report.json").read_text())["interventions"][0]["verdict"] == "helped"
    first, second = staged(tmp_path, "report.html")
    assert first.read_bytes() == page
    assert second.read_bytes() == (folder / "report.html").read_bytes()
    history = [values(record.history.item) for record in transactions(tmp_path) if record.history.item]
    assert "failures/interventions/path" in history[-1]


def test_examples__failures_first_and_bounded(tmp_path, logger):
    of = table(MAX_EXAMPLES + 100)
    WandbWriter(logger, tmp_path).show(report(table=of), gallery(of, 0), 1)
    finish()
    rows = written(tmp_path, "examples")
    assert len(rows) == MAX_EXAMPLES
    assert tuple(rows[0]) == EXAMPLE_COLUMNS
    wrong = int(of.failed.sum())
    assert [row["right"] for row in rows] == [False] * wrong + [True] * (MAX_EXAMPLES - wrong)
    assert rows[0]["id"] == int(of.ids[of.failed][0])  # of the lowest decision value
    assert rows[0]["decision_value"] == -1.0
    assert rows[0]["flagged"] is True
    assert {row["label"] for row in rows} == {"cat", shown(NASTY)}
    for row in rows[:3]:  # the thumbnail is that of the example
        (image,) = staged(tmp_path, row["image"]["path"])
        assert np.array(Image.open(image))[0, 0, 0] == row["id"] // 5 % 256


def test_show__without_examples_or_files(tmp_path, logger):
    writer = WandbWriter(logger, tmp_path / "nowhere")
    writer.show(report(), Gallery(), 1)
    writer.write(AnalysisResult(FailureReport(0, None, ())), 2)
    finish()
    assert written(tmp_path, "examples") == []
    history = [values(record.history.item) for record in transactions(tmp_path) if record.history.item]
    assert [row["trainer/global_step"] for row in history] == [1, 2]


def test_broken_run__others_are_served(tmp_path, logger):
    """What W&B cannot write is an error of its writer alone."""
    writers: list[Writer] = writers_for([logger], tmp_path / "failures")
    media = Path(logger.experiment.dir) / "media"
    media.mkdir(exist_ok=True)
    (media / "table").write_text("")  # in the way of the folder, for root too
    result = report(classes=(ENTRY,), table=table())
    ((failed, error),) = each_writer(reversed(writers), lambda writer: writer.write(result, 1))
    assert isinstance(failed, WandbWriter)
    assert isinstance(error, OSError)
    assert isinstance(writers[0], FileWriter)
    assert (tmp_path / "failures" / "report.json").is_file()


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*")
def test_broken_run__is_reported_once_and_training_continues(tmp_path, logger):
    (Path(logger.experiment.dir) / "media").mkdir()
    (Path(logger.experiment.dir) / "media" / "table").write_text("")
    modes = callback(pictures=True)
    run = trainer(tmp_path, modes, logger=logger, max_epochs=2)
    with pytest.warns(UserWarning, match="could not write to WandbWriter") as caught:
        run.fit(OracleClassifier(), loader(), loader())
    assert sum("WandbWriter" in str(one.message) for one in caught) == 1
    assert (run.current_epoch, modes.last_report.epoch) == (2, 1)
    assert json.loads(next(tmp_path.rglob("failures/**/report.json")).read_text())["examples"] == 160


# ------------------------------------------------------------------------------------- the same numbers everywhere


def cells(text: str) -> list[list[str]]:
    """The rows of a table: aligned for the terminal, or in Markdown."""
    if text.startswith("|"):
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[0] == "|"]
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


def of_classes(text: str, names: list[str]) -> dict[str, dict[str, str]]:
    """The first table of a text with a column named class: the cells of each class by column."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if re.match(r"\|? ?class\s+(\||\S)", line))
    end = next((i for i in range(start, len(lines)) if not lines[i].strip()), len(lines))
    head, *rows = cells("\n".join(lines[start:end]))
    return {row[0]: dict(zip(head, row, strict=False)) for row in rows if row[0] in names}


def test_numbers__equal_report_json_in_terminal_markdown_tensorboard_and_wandb(tmp_path, logger):
    run = a_run()
    result, folder = AnalysisResult(run.report, table=run.table), tmp_path / "failures"
    board = TensorBoardLogger(tmp_path / "board")
    writers = [FileWriter(folder), TensorBoardWriter(board), WandbWriter(logger, folder)]
    for writer in writers:
        writer.write(result, result.global_step)
        writer.show(result, run.gallery, result.global_step)
    board.experiment.close()
    finish()

    stored = json.loads((folder / "report.json").read_text())
    truth = {entry["name"]: entry for entry in stored["classes"]}
    gains = {one["class"]: one["heldout_aler_minus_ber"] for one in stored["groups"] if one["grouping"] == "label"}
    texts = {
        "terminal": report_text(open_run(folder)),
        "report.md": next(folder.glob("epoch=*/report.md")).read_text(),
        "TensorBoard": read_back(board.log_dir)
        .Tensors("failures/table/text_summary")[0]
        .tensor_proto.string_val[0]
        .decode(),
    }
    for place, text in texts.items():
        shown = of_classes(text, list(truth))
        assert set(shown) == set(truth), place
        for name, entry in truth.items():
            row = shown[name]
            assert row["error rate"] == f"{100 * (1 - entry['accuracy']):.1f} %", (place, name)
            if entry["cv_score"] is not None:
                score = f"{100 * entry['cv_score']:.1f} % +- {100 * entry['cv_score_stderr']:.1f} %"
                assert row["CV score"] == score, (place, name)
                assert row["held-out ALER - BER"] == f"{100 * gains[name]:+.1f} points", (place, name)
    (first, *_) = stored["findings"]
    sentences = (
        read_back(board.log_dir).Tensors("failures/findings/text_summary")[0].tensor_proto.string_val[0].decode()
    )
    for place, text in (texts | {"TensorBoard": sentences}).items():
        for value in (first["error_rate"], first["error_rate_outside"], first["share_of_failures"]):
            assert f"{100 * value:.1f} %" in text, place

    for row in written(tmp_path, "table"):
        entry = truth[row["class"]]
        names = ("accuracy", "cv_score", "cv_score_stderr", "p_value", "gain", "aler", "base_error_rate")
        assert {name: row[name] for name in names} == {name: entry[name] for name in names}
        assert row["error_rate"] == pytest.approx(1 - entry["accuracy"])
        assert row["heldout_aler_minus_ber"] == gains[row["class"]]
    findings = written(tmp_path, "findings_with_images")
    assert [row["error_rate"] for row in findings] == [one["error_rate"] for one in stored["findings"]]
    assert [row["failures"] for row in findings] == [one["failures"] for one in stored["findings"]]
    assert all(row["images"]["_type"] == "image-file" for row in findings)
    hidden = [record.metric for record in transactions(tmp_path) if record.metric.options.hidden]
    assert "failures/class/*" in {one.glob_name for one in hidden}
