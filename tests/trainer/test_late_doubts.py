"""Doubts that are added to analyses which are already written."""

from __future__ import annotations

import pytest

from lightning_failures.data.report import FailureReport
from lightning_failures.trainer.late_doubts import LateDoubts
from lightning_failures.writers import FileWriter
from tests.writers.reports import report


@pytest.fixture
def result():
    return report(0).with_report(epoch=0, global_step=3, notes=("before",))


def notes(folder):
    return FailureReport.from_json((folder / "report.json").read_text()).notes


def test_add__to_the_loaders_that_differ_in_all_their_files(tmp_path, result):
    said = []
    doubts = LateDoubts(said.append)
    for index in (0, 1):
        writer = FileWriter(tmp_path / str(index))
        writer.write(result, 3)
        doubts.expect(index, result, [0.75] if index else [0.25], [writer])
    doubts.update(1, result.with_report(notes=("before", "drawn")))
    doubts.update(2, result)  # of no loader that is expected
    doubted = doubts.add(lambda: {"val_loss": 0.9, "val_acc": 0.25})
    (sentence,) = said
    assert "Accuracy is 0.7500 here, but the module logged val_acc = 0.2500" in sentence
    assert {index: one.report.notes for index, one in doubted.items()} == {1: ("before", "drawn", sentence)}
    for folder in (tmp_path / "1", tmp_path / "1" / "epoch=0000-step=000003"):
        assert notes(folder) == ("before", "drawn", sentence)
    assert "Accuracy is 0.7500 here" in (tmp_path / "1" / "epoch=0000-step=000003" / "report.md").read_text()
    assert notes(tmp_path / "0") == ("before",)
    assert doubts.add(lambda: pytest.fail("nothing is expected any more")) == {}


def test_add__nothing_that_was_said_before_or_cannot_be_compared(result):
    said = []
    doubts = LateDoubts(said.append)
    doubts.expect(0, result, [], [])  # verdicts
    assert doubts.add(lambda: {"val_acc": 0.25}) == {}
    doubts.expect(0, result, [0.75], [])
    first = doubts.add(lambda: {"val_acc": 0.25})[0]
    doubts.expect(0, first, [0.75], [])
    assert doubts.add(lambda: {"val_acc": 0.25}) == {}
    assert len(said) == 1
