"""What the interventions of a report did, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning_failures.core.text import clean, escape_markdown, number
from lightning_failures.data.report import FailureReport

_REVIEWED = 20


def intervention_lines(report: FailureReport) -> list[str]:
    """Return a line for each intervention: what it changed, what it left alone, whether that helped.

    >>> entry = {"kind": "Upweight", "epoch": 3, "flagged": 40, "changes_training": True, "verdict": "not measured"}
    >>> entry["classes"] = [{"class": "cat", "flagged": 40, "reason": None}, {"class": "dog", "reason": "no pattern"}]
    >>> intervention_lines(FailureReport(90, 0.8, (), interventions=(entry,)))
    ['Upweight for epoch 3: 40 flagged training examples (cat); left alone: dog (no pattern). Verdict: not measured.']
    """
    return [_readable(entry) for entry in report.interventions]


def interventions_markdown(report: FailureReport) -> str:
    """Return the same as a Markdown list, with the labels that a person should look at; empty without interventions."""
    if not report.interventions:
        return ""
    parts = ["### Interventions", "\n".join(f"* {escape_markdown(line)}" for line in intervention_lines(report))]
    for entry in report.interventions:
        review = entry.get("review") or []
        if review:
            head = "| training example | label | model says | probability of the label | neighbours that agree |"
            rows = [
                f"| {row['id']} | {escape_markdown(row['class'])} | {escape_markdown(row['predicted'])} |"
                f" {number(row['probability_of_label'], '.3f')} | {row['neighbours_agreeing']} of 10 |"
                for row in review[:_REVIEWED]
            ]
            more = len(review) - len(rows)
            parts.append(
                "Labels to look at, left out:\n\n" + "\n".join([head, "| ---: | --- | --- | ---: | ---: |", *rows])
            )
            parts += [f"{more} more are in report.json."] if more > 0 else []
    return "\n\n".join(parts)


def _readable(entry: Mapping[str, Any]) -> str:
    try:
        line = _line(entry)
    except (LookupError, TypeError, AttributeError, ValueError):
        return "an intervention in a form that this version does not read"
    return clean(line, limit=max(len(line), 1))


def _line(entry: Mapping[str, Any]) -> str:
    classes = entry.get("classes", [])
    changed = [row for row in classes if row.get("flagged") or row.get("added")]
    names = ", ".join(clean(row["class"]) for row in changed)
    what = []
    if entry.get("flagged"):
        what.append(f"{entry['flagged']} flagged training examples")
    if entry.get("added"):
        what.append(f"{entry['added']} examples added")
    told = f"{' and '.join(what)} ({names})" if what else "nothing to change"
    if what and not entry.get("changes_training"):
        told += ", but the training is left as it is"
    alone = [
        f"{clean(row['class'])} ({clean(row['reason'] or 'nothing flagged')})" for row in classes if row not in changed
    ]
    parts = [told] + ([f"left alone: {', '.join(alone)}"] if alone else [])
    if entry.get("suspected"):
        parts.append(f"{entry['suspected']} suspected label errors left out")
    if (undone := entry.get("rolled_back")) is not None:
        parts.append(f"undone in epoch {undone['epoch']}")
    verdict = entry.get("verdict", "not measured")
    ending = f"Verdict: {verdict}." if isinstance(verdict, str) else verdict["sentence"]
    return f"{entry['kind']} for epoch {entry['epoch']}: {'; '.join(parts)}. {ending}"
