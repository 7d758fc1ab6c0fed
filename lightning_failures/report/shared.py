"""The pattern that all classes share as text: how far to trust it, its captions, attributes, and classes."""

from __future__ import annotations

from lightning_failures.core.text import clean, escape_markdown, number, percent, percent_interval
from lightning_failures.data.records import ClassHold, SharedPattern, ValueReport
from lightning_failures.data.report import FailureReport
from lightning_failures.report.sentences import shared_sentence
from lightning_failures.report.text_tables import pipe_table


def held_classes(pattern: SharedPattern, limit: int | None = None) -> list[ClassHold]:
    """Return the classes in which the pattern holds, the clearest first."""
    return [one for one in pattern.classes if one.holds][:limit]


def shared_values(pattern: SharedPattern, limit: int | None = None) -> list[ValueReport]:
    """Return the attribute values whose share of the flagged examples lies above that of all beyond its interval."""

    def stands_out(row: ValueReport) -> bool:
        return row.share_of_flagged_interval is not None and row.share_of_flagged_interval[0] > (row.share or 0.0)

    return [row for row in pattern.values if stands_out(row)][:limit]


def shared_lines(report: FailureReport, limit: int = 3) -> list[str]:
    """Return lines on the pattern that all classes share, for the terminal; none if nothing was fitted.

    >>> pattern = SharedPattern(examples=90, failures=30, p_value=0.3)
    >>> shared_lines(FailureReport(90, 0.7, (), shared=pattern))
    ['No pattern: within classes, the 30 failures are consistent with chance (p = 0.3).']
    """
    pattern = report.shared
    if pattern is None or pattern.skipped is not None:
        return []
    lines = [shared_sentence(pattern)]
    if pattern.pattern:
        lines += [
            f"{clean(row.attribute)} = {clean(row.value)}: {percent(row.share_of_flagged)}"
            f" ({percent_interval(row.share_of_flagged_interval)}) of the flagged examples, {percent(row.share)} of all"
            for row in shared_values(pattern, limit)
        ]
    return lines


def shared_markdown(report: FailureReport, *, limit: int = 30) -> str:
    """Return the pattern that all classes share as Markdown; empty if nothing was fitted.

    Args:
        report: One analysis.
        limit: Most classes and most attribute values.
    """
    pattern = report.shared
    if pattern is None or pattern.skipped is not None:
        return ""
    parts = ["### Pattern shared by classes", escape_markdown(shared_sentence(pattern))]
    if pattern.pattern:
        if pattern.hardest_captions:
            words = [
                ", ".join(map(escape_markdown, some)) for some in (pattern.hardest_captions, pattern.easiest_captions)
            ]
            parts.append(f"Captions of failures: {words[0]}. Of successes: {words[1]}.")
        if classes := held_classes(pattern, limit):
            names = ", ".join(f"{escape_markdown(one.name)} ({number(one.auc)})" for one in classes)
            parts.append(f"Classes in which it holds, with the AUC of directions of other classes: {names}.")
        rows = [
            (
                f"{escape_markdown(row.attribute)} = {escape_markdown(row.value)}",
                percent(row.share),
                percent(row.share_of_failures),
                percent(row.share_of_flagged),
                percent_interval(row.share_of_flagged_interval),
            )
            for row in shared_values(pattern, limit)
        ]
        if rows:
            head = ("value", "of all", "of the failures", "of the flagged", "95 % interval")
            parts.append(pipe_table(head, rows, "lrrrr"))
    return "\n\n".join(parts)
