"""Words for what interventions did."""

from __future__ import annotations

from lightning_failures.data.report import FailureReport
from lightning_failures.report.interventions import intervention_lines, interventions_markdown

ENTRY = {
    "kind": "Upweight",
    "epoch": 2,
    "flagged": 7,
    "added": 0,
    "suspected": 23,
    "changes_training": False,
    "classes": [{"class": "<b>cat|", "flagged": 7, "reason": None}, {"class": "dog", "flagged": 0, "reason": None}],
    "review": [
        {"id": k, "class": "<b>cat|", "predicted": "dog", "probability_of_label": 0.01, "neighbours_agreeing": 9}
        for k in range(23)
    ],
    "rolled_back": {"epoch": 4},
    "verdict": {"sentence": "Helped: yes."},
}


def report(*entries) -> FailureReport:
    return FailureReport(10, 0.5, (), interventions=entries)


def test_lines__all_that_happened():
    (line,) = intervention_lines(report(ENTRY))
    assert line == (
        "Upweight for epoch 2: 7 flagged training examples (<b>cat|), but the training is not changed; unchanged:"
        " dog (nothing flagged); 23 suspected label errors left out; rolled back in epoch 4. Helped: yes."
    )


def test_lines__nothing_to_change():
    entry = {"kind": "AddFiltered", "epoch": 1, "classes": [], "flagged": 0, "added": 0}
    assert intervention_lines(report(entry)) == ["AddFiltered for epoch 1: nothing to change. Verdict: not measured."]


def test_markdown__review_is_bounded_and_names_are_escaped():
    text = interventions_markdown(report(ENTRY))
    assert interventions_markdown(report()) == ""
    assert "<b>" not in text
    assert text.count("| 9 of 10 |") == 20
    assert "3 more are in report.json." in text


def test_lines__the_gain_that_came_beside_the_expected_one():
    key, entry = "report/flagged_error_rate", {"kind": "AddFiltered", "epoch": 1, "added": 9, "changes_training": True}
    entry |= {"classes": [{"class": "cat", "added": 9}], "expected_drop": 0.625}
    trend = [{"epoch": 0, key: 0.75}, {"epoch": 1}, {"epoch": 2, key: 0.875}]
    (line,) = intervention_lines(report(entry | {"trend": trend}))
    assert "flagged slice: expected to fall by up to 62.5 points, has risen by 12.5 points (75.0 % -> 87.5 %)" in line
    (line,) = intervention_lines(report(entry | {"trend": trend[:1]}))
    assert "expected to fall by up to 62.5 points, not measured yet." in line
    assert "expected" not in intervention_lines(report(entry | {"expected_drop": None}))[0]
