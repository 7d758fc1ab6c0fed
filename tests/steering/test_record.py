"""The record of the interventions: when they began, the trend, entries for the report."""

from __future__ import annotations

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
