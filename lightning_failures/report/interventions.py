"""What the interventions of a report did, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_failures.core.text import clean, escape_markdown, number
from lightning_failures.data.report import FailureReport
from lightning_failures.report.text_tables import pipe_table

_MAX_REVIEW = 20


def intervention_lines(report: FailureReport) -> list[str]:
    """Return one line an intervention: what it changed, which classes it left unchanged, and the verdict.

    >>> entry = {"kind": "Upweight", "epoch": 3, "flagged": 40, "changes_training": True, "verdict": "not measured"}
    >>> entry["classes"] = [{"class": "cat", "flagged": 40, "reason": None}, {"class": "dog", "reason": "no pattern"}]
    >>> intervention_lines(FailureReport(90, 0.8, (), interventions=(entry,)))
    ['Upweight for epoch 3: 40 flagged training examples (cat); unchanged: dog (no pattern). Verdict: not measured.']
    """
    return [_readable(entry) for entry in report.interventions]


def interventions_markdown(report: FailureReport) -> str:
    """Return the lines as a Markdown list, with the labels to review; empty without interventions."""
    if not report.interventions:
        return ""
    parts = ["### Interventions", "\n".join(f"* {escape_markdown(line)}" for line in intervention_lines(report))]
    for entry in report.interventions:
        parts += _review(entry.get("review") or [])
    return "\n\n".join(parts)


def _review(suspects: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the suspected label errors as a Markdown table with a title."""
    if not suspects:
        return []
    head = ("training example", "label", "predicted", "probability of the label", "neighbours that agree")
    rows = [
        (
            str(suspect["id"]),
            escape_markdown(suspect["class"]),
            escape_markdown(suspect["predicted"]),
            number(suspect["probability_of_label"], ".3f"),
            f"{suspect['neighbours_agreeing']} of 10",
        )
        for suspect in suspects[:_MAX_REVIEW]
    ]
    more = len(suspects) - len(rows)
    parts = ["Suspected label errors, left out of the intervention:", pipe_table(head, rows, "rllrr")]
    return [*parts, f"{more} more are in report.json."] if more > 0 else parts


def _readable(entry: Mapping[str, Any]) -> str:
    try:
        line = _line(entry)  # entries of report.json may be of another version
    except (LookupError, TypeError, AttributeError, ValueError):
        return "An intervention in a form that this version cannot read."
    return clean(line, limit=max(len(line), 1))


def _line(entry: Mapping[str, Any]) -> str:
    classes = entry.get("classes", [])
    changed = [row for row in classes if row.get("flagged") or row.get("added")]
    unchanged = [row for row in classes if row not in changed]
    counts = []
    if entry.get("flagged"):
        counts.append(f"{entry['flagged']} flagged training examples")
    if entry.get("added"):
        counts.append(f"{entry['added']} examples added")

    # what was changed, which classes were not, and how it ended
    names = ", ".join(clean(row["class"]) for row in changed)
    change = f"{' and '.join(counts)} ({names})" if counts else "nothing to change"
    if counts and not entry.get("changes_training"):
        change += ", but the training is not changed"
    parts = [change]
    if unchanged:
        reasons = [f"{clean(row['class'])} ({clean(row['reason'] or 'nothing flagged')})" for row in unchanged]
        parts.append(f"unchanged: {', '.join(reasons)}")
    if entry.get("suspected"):
        parts.append(f"{entry['suspected']} suspected label errors left out")
    if (rollback := entry.get("rolled_back")) is not None:
        parts.append(f"rolled back in epoch {rollback['epoch']}")
    verdict = entry.get("verdict", "not measured")
    ending = f"Verdict: {verdict}." if isinstance(verdict, str) else verdict["sentence"]
    return f"{entry['kind']} for epoch {entry['epoch']}: {'; '.join(parts)}. {ending}"
