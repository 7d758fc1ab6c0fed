"""The record of the interventions: when they began, the trend, entries for the report."""

from __future__ import annotations

import pytest
import torch

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data.grades import Grades
from lightning_failures.data.held_out import HeldOutParts, HeldOutSplit
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.steering.record import InterventionRecord


def entry(began):
    return {"kind": "Upweight", "began": began, "changes_training": began is not None}


def test_first_epoch__of_those_that_change_the_training():
    record = InterventionRecord(["0 Upweight", "1 Upweight"])
    assert not record.began
    record.entries = {"0 Upweight": entry(None), "1 Upweight": entry(3), "2 Upweight": entry(1)}
    assert record.began
    assert record.first_epoch == 3


def test_first_epoch__without_any_it_follows_the_slice():
    record = InterventionRecord([])
    assert record.first_epoch is None
    record.slice_epoch = 4
    assert record.first_epoch == 5


def test_trend__a_resumed_epoch_replaces_the_former_points():
    record = InterventionRecord(["0 Upweight"])
    record.entries = {"0 Upweight": entry(1)}
    for epoch, accuracy in ((0, 0.5), (1, 0.6), (2, 0.7), (1, 0.8)):
        record.add_trend(epoch, {"report/accuracy": accuracy})
    (summary,) = record.summary({"epoch": 1, "reason": "it fell"})
    assert [(point["epoch"], point["report/accuracy"]) for point in summary["trend"]] == [(0, 0.5), (1, 0.8)]
    assert summary["rolled_back"] == {"epoch": 1, "reason": "it fell"}
    assert summary["verdict"] == "not measured"
    record.mark_inactive("0 Upweight")
    record.mark_inactive("9 Unknown")
    assert not record.summary(None)[0]["changes_training"]
    record.reset()
    assert record.summary(None) == ()


# -- the frozen slice ----------------------------------------------------------------------------------------


def part(ids, digests, failed, values) -> HeldOutSplit:
    ids = torch.tensor(ids)
    zeros = torch.zeros(len(ids)).long()
    digests = None if digests is None else torch.tensor(digests)
    grades = Grades(ids, zeros, torch.tensor(failed).long(), torch.ones(len(ids)), ("a", "b"), digests=digests)
    return HeldOutSplit(grades, torch.tensor(values))


def frozen(report: HeldOutSplit, decision: HeldOutSplit) -> InterventionRecord:
    classes = (ClassReport("a", 9, pattern=True), ClassReport("b", 9))
    result = AnalysisResult(FailureReport(9, None, classes), parts=HeldOutParts(report, decision))
    record = InterventionRecord([])
    record.freeze(result, 3)
    return record


REPORT = part([2, 4, 6, 8], [12, 14, 16, 18], [1, 1, 0, 0], [-1.0, -1.0, -1.0, 1.0])
DECISION = part([1, 3], [11, 13], [1, 0], [-1.0, 1.0])


def test_slice__holds_what_is_known_of_it():
    record = frozen(REPORT, DECISION)
    assert (record.slice.tolist(), record.slice_epoch) == ([1, 2, 4, 6], 3)
    assert {name: column.tolist() for name, column in record.slice_then.items()} == {
        "failed": [True, True, True, False],
        "in_report": [False, True, True, True],
        "digests": [11, 12, 14, 16],
    }
    assert record.unmatched(HeldOutParts(REPORT, DECISION)) == 0
    assert record.frozen(report=True).error_rate(REPORT.grades) == pytest.approx(2 / 3)
    assert record.frozen(report=False).error_rate(DECISION.grades) == 1.0


def test_slice__is_found_under_other_ids_and_partly():
    """Digest 14 is gone, and 16 fails now: of the rate of 2/3, half of the two that are found are more."""
    record = frozen(REPORT, DECISION)
    now = part([0, 1, 2], [16, 12, 99], [1, 1, 1], [1.0, 1.0, -1.0])
    assert record.present(now.grades).tolist() == [0, 1]
    assert record.unmatched(HeldOutParts(now, DECISION)) == 1
    assert record.frozen(report=True).error_rate(now.grades) == 1.0
    same = part([0, 1, 2], [16, 12, 99], [0, 1, 1], [1.0, 1.0, -1.0])
    assert record.frozen(report=True).error_rate(same.grades) == pytest.approx(2 / 3)
    nothing = part([2, 4], [98, 99], [0, 0], [1.0, 1.0])  # other images under the same ids
    assert record.frozen(report=True).error_rate(nothing.grades) is None
    assert record.unmatched(HeldOutParts(nothing, nothing)) == 4


def test_slice__of_a_former_run_is_found_by_id():
    record = frozen(REPORT, DECISION)
    record.slice_then = None
    assert record.frozen(report=True).tolist() == [1, 2, 4, 6]
    assert record.present(REPORT.grades).tolist() == [2, 4, 6]
    assert record.unmatched(HeldOutParts(REPORT, DECISION)) == 0
    without = frozen(part([2, 4], None, [1, 0], [-1.0, -1.0]), part([1], None, [1], [1.0]))
    assert "digests" not in without.slice_then
    assert without.frozen(report=True).error_rate(part([2, 4], [7, 8], [1, 1], [1.0, 1.0]).grades) == 1.0
