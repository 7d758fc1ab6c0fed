"""What the interventions of a report did, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_failures.core.text import clean, escape_markdown, number, percent, points
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


def _review(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the training examples to review as Markdown tables, each with a title."""
    suspects = [one for one in entries if "neighbours_agreeing" in one]
    doubts = [one for one in entries if "label_margin" in one]
    return [
        *_table(
            "Suspected label errors, left out of the intervention:",
            ("training example", "label", "predicted", "probability of the label", "neighbours that agree"),
            [
                (*_label(one, "predicted"), percent(one["probability_of_label"]), _of_ten(one))
                for one in suspects[:_MAX_REVIEW]
            ],
            len(suspects),
        ),
        *_table(
            "Doubtful labels, left out of the intervention: the embeddings speak for another class.",
            ("training example", "label", "class that they speak for", "label margin"),
            [(*_label(one, "supported"), number(one["label_margin"], "+.3f")) for one in doubts[:_MAX_REVIEW]],
            len(doubts),
        ),
    ]


def _label(entry: Mapping[str, Any], other: str) -> tuple[str, str, str]:
    return str(entry["id"]), escape_markdown(entry["class"]), escape_markdown(entry[other])


def _of_ten(entry: Mapping[str, Any]) -> str:
    return f"{entry['neighbours_agreeing']} of 10"


def _table(title: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]], count: int) -> list[str]:
    """Return a title, a table and the number of rows that it leaves out; nothing if there are none."""
    if not rows:
        return []
    parts = [title, pipe_table(head, rows, "rll" + "r" * (len(head) - 3))]
    return [*parts, f"{count - len(rows)} more are in report.json."] if count > len(rows) else parts


def _readable(entry: Mapping[str, Any]) -> str:
    try:
        line = _line(entry)  # entries of report.json may be of another version
    except (LookupError, TypeError, AttributeError, ValueError):
        return "An intervention in a form that this version cannot read."
    return clean(line, limit=max(len(line), 1))


def _gain(entry: Mapping[str, Any]) -> str | None:
    """Return the expected and the measured fall of the error rate of the flagged slice; None if none is expected.

    >>> key = "report/flagged_error_rate"
    >>> _gain({"expected_drop": 0.5, "trend": [{"epoch": 1, key: 0.75}, {"epoch": 2, key: 0.5}]}).split(": ")[1]
    'expected to fall by up to 50.0 points, has fallen by 25.0 points (75.0 % -> 50.0 %)'
    """
    expected = entry.get("expected_drop")
    if expected is None:
        return None
    key = "report/flagged_error_rate"
    rates = [point[key] for point in entry.get("trend", ()) if key in point]
    came = "not measured yet"
    if len(rates) > 1:
        change = rates[0] - rates[-1]
        came = f"has {'fallen' if change >= 0 else 'risen'} by {points(abs(change)).removeprefix('+')}"
        came += f" ({percent(rates[0])} -> {percent(rates[-1])})"
    return f"error rate of the flagged slice: expected to fall by up to {points(expected).removeprefix('+')}, {came}"


def _line(entry: Mapping[str, Any]) -> str:
    """Return what an intervention changed, which classes it left unchanged, what came of it, and the verdict."""
    left_out = [text.format(entry[key]) for key, text in _LEFT_OUT.items() if entry.get(key)]
    parts = [_change(entry), *_new_head(entry), *_unchanged(entry), *left_out, *_outcome(entry)]
    verdict = entry.get("verdict", "not measured")
    ending = f"Verdict: {verdict}." if isinstance(verdict, str) else verdict["sentence"]
    when = f"after epoch {entry['epoch'] - 1}" if entry.get("at_end") else f"for epoch {entry['epoch']}"
    return f"{entry['kind']} {when}: {'; '.join(parts)}. {ending}"


_COUNTS = {"flagged": "{} flagged training examples", "added": "{} examples added"}
_LEFT_OUT = {
    "suspected": "{} suspected label errors left out",
    "doubted": "{} with a label that the embeddings do not support left out",
}
"""What to say of each number of an intervention, unless it is absent or 0."""


def _change(entry: Mapping[str, Any]) -> str:
    """Return what an intervention changed, and whether that changes the model."""
    changes_training = entry.get("changes_training")
    counts = [text.format(entry[key]) for key, text in _COUNTS.items() if entry.get(key)]
    if counts:
        names = ", ".join(clean(row["class"]) for row in entry.get("classes", []) if _is_changed(row))
        what = "last layer" if "head" in entry else "training"
        return f"{' and '.join(counts)} ({names})" + ("" if changes_training else f", but the {what} is not changed")
    if entry.get("masked"):
        text = f"{len(entry['masked'])} of {entry['features']} features masked"
        return text + ("" if changes_training else ", but the last layer is not changed")
    return "nothing to change"


def _is_changed(row: Mapping[str, Any]) -> bool:
    return bool(row.get("flagged") or row.get("added"))


def _unchanged(entry: Mapping[str, Any]) -> list[str]:
    """Return the classes that an intervention left unchanged, each with the reason."""
    rows = [row for row in entry.get("classes", []) if not _is_changed(row)]
    reasons = [f"{clean(row['class'])} ({clean(row['reason'] or 'nothing flagged')})" for row in rows]
    return [f"unchanged: {', '.join(reasons)}"] if reasons else []


def _outcome(entry: Mapping[str, Any]) -> list[str]:
    """Return the expected and the measured gain, and whether the intervention was rolled back."""
    gain, rollback = _gain(entry), entry.get("rolled_back")
    rolled_back = None if rollback is None else f"rolled back in epoch {rollback['epoch']}"
    return [text for text in (gain, rolled_back) if text is not None]


def _new_head(entry: Mapping[str, Any]) -> list[str]:
    """Return what a new last layer gains on the report part, beside its controls."""
    measured = entry.get("measured")
    if not measured:
        return []
    new = "masked" if "masked" in measured else "retrained"
    figures = {arm: measured[arm] for arm in ("before", new, "uniform", "random")}
    worst = {arm: percent(one["worst_group"]) for arm, one in figures.items()}
    right = {arm: percent(one["accuracy"]) for arm, one in figures.items()}
    if new == "masked":
        return [
            f"last layer {clean(entry['head'])!r} refitted without {_features(entry['masked'])}: accuracy on the report"
            f" part {right['before']} -> {right['masked']} (refitted with all features {right['uniform']}, without"
            f" random ones {right['random']}), worst group {worst['before']} -> {worst['masked']} ({worst['uniform']},"
            f" {worst['random']})"
        ]
    return [
        f"last layer {clean(entry['head'])!r} refitted: worst group of the report part {worst['before']} ->"
        f" {worst['retrained']} (refitted without flags {worst['uniform']}, with random flags {worst['random']}),"
        f" accuracy {right['before']} -> {right['retrained']} ({right['uniform']}, {right['random']})"
    ]


def _features(masked: Sequence[Mapping[str, Any]], limit: int = 8) -> str:
    """Return the masked features with the reason of each.

    >>> _features([{"feature": 3, "reason": "spurious"}, {"feature": 8, "reason": "costly"}])
    'features 3 (spurious), 8 (costly)'
    """
    shown = [f"{one['feature']} ({clean(str(one['reason']), 20)})" for one in masked[:limit]]
    more = f" and {len(masked) - limit} more" if len(masked) > limit else ""
    return f"feature{'s' if len(masked) > 1 else ''} {', '.join(shown)}{more}"
