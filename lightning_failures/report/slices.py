"""Slices by attribute as text: values of known attributes with which examples fail more often than others do."""

from __future__ import annotations

from lightning_failures.analysis.slices import lower_end
from lightning_failures.core.text import clean, escape_markdown, percent, percent_interval, points
from lightning_failures.data.report import FailureReport, SliceReport
from lightning_failures.report.text_tables import pipe_table

ALL_CLASSES = "all classes"


def significant_slices(report: FailureReport, limit: int | None = None) -> list[tuple[str, SliceReport]]:
    """Return the significant slices of all classes and of each class with their paths in the report.

    They are sorted by the lower end of the interval of the adjusted gap, so that small slices do not lead by noise.

    >>> from lightning_failures.data.report import ClassReport
    >>> night = SliceReport("time", "night", "cat", 20, 9, 0.45, (0.26, 0.66), 0.1, 0.35, (0.15, 0.56), 0.001, True)
    >>> significant_slices(FailureReport(50, 0.8, (ClassReport("cat", 50, slices=(night,)),)))[0][0]
    'classes/0/slices/0'
    """
    rows = [(f"slices/{i}", row) for i, row in enumerate(report.slices)]
    for k, entry in enumerate(report.classes):
        rows += [(f"classes/{k}/slices/{i}", row) for i, row in enumerate(entry.slices)]
    significant = [item for item in rows if item[1].significant]
    return sorted(significant, key=lambda item: -lower_end(item[1]))[:limit]


def slice_lines(report: FailureReport, limit: int = 10) -> list[str]:
    """Return one line for each of the slices that fail most, for the terminal.

    >>> from lightning_failures.data.report import ClassReport
    >>> night = SliceReport("time", "night", "cat", 20, 9, 0.45, (0.26, 0.66), 0.1, 0.35, (0.15, 0.56), 0.001, True)
    >>> slice_lines(FailureReport(50, 0.8, (ClassReport("cat", 50, slices=(night,)),)))
    ['cat: time = night: 45.0 % (26.0 to 66.0 %) of 20 examples fail, 10.0 % of the others']
    """
    found = significant_slices(report)
    lines = [
        f"{clean(row.class_name or ALL_CLASSES)}: {clean(row.attribute)} = {clean(row.value)}:"
        f" {percent(row.error_rate)} ({percent_interval(row.interval)}) of {row.examples} examples fail,"
        f" {percent(row.error_rate_outside)} of the others"
        f"{_adjustment(row)}"
        for _, row in found[:limit]
    ]
    return lines + ([f"{len(found) - limit} more in report.json"] if len(found) > limit else [])


def slices_markdown(report: FailureReport, *, limit: int = 30) -> str:
    """Return the slices that fail most as a Markdown table; empty if none fails more often beyond chance.

    Args:
        report: One analysis.
        limit: Most slices.
    """
    found = significant_slices(report)
    rows = [
        (
            escape_markdown(row.class_name or ALL_CLASSES),
            f"{escape_markdown(row.attribute)} = {escape_markdown(row.value)}",
            str(row.examples),
            percent(row.error_rate),
            percent_interval(row.interval),
            percent(row.error_rate_outside),
            points(row.gap),
            percent_interval(row.gap_interval, "points"),
            points(row.adjusted_gap),
            percent_interval(row.adjusted_gap_interval, "points"),
        )
        for _, row in found[:limit]
    ]
    if not rows:
        return ""
    rates = ("error rate", "95 % interval", "of the others")
    gaps = ("gap", "95 % interval", "gap within classes", "95 % interval")
    head = ("class", "value", "examples", *rates, *gaps)
    more = f"\n\n{len(found) - len(rows)} more are in report.json." if len(found) > len(rows) else ""
    return f"### Slices that fail more often than the others\n\n{pipe_table(head, rows, 'llrrrrrrrr')}{more}"


def _adjustment(row: SliceReport) -> str:
    """Return the gap within classes of a slice over all classes; empty for a slice of one class."""
    if row.class_name is not None or row.adjusted_gap is None:
        return ""
    return f" (within classes {points(row.adjusted_gap)})"
