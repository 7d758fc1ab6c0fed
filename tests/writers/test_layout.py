"""The layout of scalars, read back from event files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lightning_failures.trainer.metric_keys import DECISION_KEYS, GRADE_AGGREGATES, aggregates
from lightning_failures.writers import TensorBoardWriter
from lightning_failures.writers.layout import CHARTS, chart_layout, written_layout
from tests.writers.analyses import read_back, report


def layouts(folder: str | Path) -> list[dict[str, list[str]]]:
    """Category -> charts, of each layout that was written."""
    written = []
    for event in read_back(folder).Tensors("custom_scalars__config__"):
        layout = Layout.FromString(event.tensor_proto.string_val[0])
        written.append({one.title: [chart.title for chart in one.chart] for one in layout.category})
    return written


def test_layout__every_key_that_is_logged_has_one_chart():
    keys = [
        *aggregates(),
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
    writer = TensorBoardWriter(logger)
    for step in (1, 2):
        writer.write(report(), step)
    grades, classes = (
        ["accuracy and coverage", "validations since the last analysis"],
        ["accuracy", "CV score", "p-value", "ALER in sample"],
    )
    first = {
        "failures: grades": grades,
        "failures: directions": ["strength of the patterns (CV score)"],
        "failures: worst classes": classes,
    }
    assert layouts(logger.log_dir) == [first]
    writer.write(report(summary={"valid_leaf_fraction": 0.5, "report/accuracy": 0.5}, classes=()), 3)
    writer.write(report(classes=()), 4)  # what is not defined any more is laid out still
    assert layouts(logger.log_dir) == [
        first,
        {
            "failures: grades": grades,
            "failures: directions": ["strength of the patterns (CV score)"],
            "failures: trees": ["share of groups whose leaf is valid held out"],
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
