"""Reports as text: a table for the terminal, Markdown for dashboards and files.

Captions describe noise where no pattern was found, so they appear only beside a pattern.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from lightning_failures.core.text import (
    NOTHING,
    clean,
    escape_markdown,
    interval,
    number,
    shorten_caption,
)
from lightning_failures.data.report import ClassReport, FailureReport, GroupReport, ValueReport
from lightning_failures.report.sentences import group_sentence, trust_sentence


def verdict(entry: ClassReport) -> str:
    """Return the p-value of a class with a pattern, else why there is none.

    >>> verdict(ClassReport("cat", 9, p_value=0.001, pattern=True)), verdict(ClassReport("cat", 9, p_value=0.4))
    ('0.001', 'no pattern')
    """
    if entry.skipped is not None:
        return "skipped"
    if entry.pattern:
        return number(entry.p_value, ".2g")
    return NOTHING if entry.p_value is None else "no pattern"


def score(entry: ClassReport) -> str:
    """Return the CV score with its standard error: differences inside it tell nothing.

    >>> score(ClassReport("cat", 9, cv_score=0.79, cv_score_stderr=0.033)), score(ClassReport("cat", 9))
    ('0.79 +- 0.03', '-')
    """
    stderr = entry.cv_score_stderr
    return number(entry.cv_score) + ("" if stderr is None else f" +- {number(stderr)}")


def rank_classes(report: FailureReport) -> list[ClassReport]:
    """Order classes from the highest error rate down; ties by support, then by position. Ungraded ones come last."""
    return sorted(report.classes, key=lambda c: (c.accuracy is None, c.accuracy or 0.0, -c.examples))


def class_table(report: FailureReport, *, width: int = 140) -> str:
    """Return an aligned table for the terminal, one class a line, at most ``width`` columns wide where possible.

    >>> print(class_table(FailureReport(9, 0.5, (ClassReport("cat", 9, accuracy=0.5, skipped="4 failures"),))))
    class  accuracy  CV score  p-value  ALER - BER  hardest caption  easiest caption
    cat        0.50         -  skipped           -  (4 failures)     -
    """
    head = ("class", "accuracy", "CV score", "p-value", "ALER - BER", "hardest caption", "easiest caption")
    rows = [
        (
            clean(c.name),
            number(c.accuracy),
            score(c),
            verdict(c),
            number(_gain(c)),
            *_captions(c),
        )
        for c in report.classes
    ]
    natural = [max(_columns(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    name = min(natural[0], 24)
    left = width - name - sum(natural[1:5]) - 6 * 2
    hardest, easiest = _share(left, natural[5], natural[6])
    widths = (name, *natural[1:5], hardest, easiest)
    right = (False, True, True, True, True, False, False)
    return "\n".join(
        "  ".join(_pad(cell, w, r) for cell, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in (head, *rows)
    )


def error_changes(report: FailureReport, before: FailureReport | None) -> dict[str, float]:
    """Return by how much the error rate of each class is above that of an earlier report, where both are defined.

    Classes that share a name are left out: nothing tells which is which.

    >>> then, now = (FailureReport(9, None, (ClassReport("cat", 9, accuracy=value),)) for value in (0.5, 0.75))
    >>> error_changes(now, then), error_changes(now, None)
    ({'cat': -0.25}, {})
    """
    if before is None:
        return {}
    now, then = (Counter(entry.name for entry in one.classes) for one in (report, before))
    accuracy = {entry.name: entry.accuracy for entry in before.classes}
    return {
        entry.name: earlier - entry.accuracy
        for entry in report.classes
        if entry.accuracy is not None
        and now[entry.name] == then[entry.name] == 1
        and (earlier := accuracy[entry.name]) is not None
    }


def markdown_table(report: FailureReport, *, limit: int | None = None, before: FailureReport | None = None) -> str:
    """Return a Markdown table of classes, the highest error rate first, with support.

    Args:
        report: What one analysis found.
        limit: Show only so many classes, the worst, and say how many were left out.
        before: An earlier report: by how much the error rates have changed since gets a column.
    """
    ranked = rank_classes(report)
    changes = error_changes(report, before)
    rows = [
        (
            escape_markdown(c.name),
            str(c.examples),
            number(None if c.accuracy is None else 1 - c.accuracy, ".3f"),
            *([] if before is None else [number(changes.get(c.name), "+.3f")]),
            score(c),
            verdict(c),
            number(_gain(c)),
            *map(escape_markdown, _captions(c)),
        )
        for c in ranked[:limit]
    ]
    head = (
        "class",
        "examples",
        "error rate",
        *([] if before is None else ["change"]),
        "CV score",
        "p-value",
        "ALER - BER",
        "hardest caption",
        "easiest caption",
    )
    more = len(ranked) - len(rows)
    return _markdown(head, rows, f"l{'r' * (len(head) - 3)}ll") + (
        f"\n\n{more} classes with fewer errors are in report.json." if more else ""
    )


def tree_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return the rules of the failure trees as Markdown, one section a group; empty without trees.

    A group without a pattern gets one sentence: its leaves are in ``report.json``, but they are no finding.

    Args:
        report: What one analysis found.
        limit: Show only so many groups, those with a pattern and the highest held-out ALER - BER first.
    """
    ranked = sorted(report.groups, key=lambda g: (not g.pattern, -(g.heldout_aler_minus_ber or 0.0)))
    return "\n\n".join(_group_markdown(group) for group in ranked[:limit])


def strongest_values(entry: ClassReport, limit: int = 3) -> list[ValueReport]:
    """Return the values of metadata that stand out among the flagged examples of a class, the strongest first.

    A value stands out where the interval of its share of the flagged lies above its share of all, and the strength is
    how many times above its lower end is. None stands out without a pattern: what is flagged is noise then.
    """

    def strength(row: ValueReport) -> float:
        return row.share_of_flagged_interval[0] / row.share if row.share_of_flagged_interval and row.share else 0.0

    rows = [row for row in entry.enrichment if entry.pattern and strength(row) > 1]
    return sorted(rows, key=lambda row: -strength(row))[:limit]


def enrichment_lines(report: FailureReport) -> list[str]:
    """Return one line for each class in which a value of metadata stands out, for the terminal.

    >>> red = ValueReport("tint", "red", 5, 4, share=0.1, share_of_flagged=0.8, share_of_flagged_interval=(0.5, 0.9))
    >>> enrichment_lines(FailureReport(50, 0.9, (ClassReport("cat", 50, pattern=True, enrichment=(red,)),)))
    ['cat: tint = red is 0.80 (0.50 to 0.90) of the flagged, 0.10 of all']
    """
    return [
        f"{clean(entry.name)}: {clean(row.attribute)} = {clean(row.value)} is {number(row.share_of_flagged)}"
        f" ({interval(row.share_of_flagged_interval)}) of the flagged, {number(row.share)} of all"
        for entry in report.classes
        for row in strongest_values(entry, limit=1)
    ]


def trust_lines(report: FailureReport, limit: int | None = None) -> list[str]:
    """Return how far to trust what is said of each class, the worst first; for the terminal, a line a class.

    >>> trust_lines(FailureReport(9, 0.5, (ClassReport("cat", 9, accuracy=0.5, skipped="4 failures"),)))
    ['cat: Not judged: 4 failures.']
    """
    return [f"{clean(entry.name)}: {trust_sentence(entry)}" for entry in rank_classes(report)[:limit]]


def trust_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return :func:`trust_lines` as Markdown, those with a direction only; empty if there is none.

    Args:
        report: What one analysis found.
        limit: Show only so many classes, the worst.
    """
    judged = [entry for entry in rank_classes(report) if entry.cv_score is not None]
    lines = [
        f"* **{escape_markdown(entry.name)}**: {escape_markdown(trust_sentence(entry), limit=2000)}"
        for entry in judged[:limit]
    ]
    return "\n".join(["### How far to trust it", "", *lines]) if lines else ""


def notes_markdown(report: FailureReport) -> str:
    """Return what a reader must know of the analysis as a Markdown list, a line a note; empty if there is nothing.

    >>> notes_markdown(FailureReport(examples=1, accuracy=1.0, classes=(), notes=("Looked at 5 % of the examples.",)))
    '* Looked at 5 % of the examples.'
    """
    return "\n".join(f"* {escape_markdown(note)}" for note in report.notes)


def enrichment_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return the values of metadata that stand out as a Markdown table, worst class first; empty if there is none.

    Args:
        report: What one analysis found.
        limit: Show only so many classes, the worst.
    """
    found = [entry for entry in rank_classes(report) if strongest_values(entry)]
    rows = [
        (
            escape_markdown(entry.name),
            f"{escape_markdown(row.attribute)} = {escape_markdown(row.value)}",
            number(row.share),
            number(row.share_of_failures),
            number(row.share_of_flagged),
            interval(row.share_of_flagged_interval),
            number(row.share_of_least_confident),
        )
        for entry in found[:limit]
        for row in strongest_values(entry)
    ]
    head = ("class", "value", "share of all", "of failures", "of flagged", "95 % interval", "of least confident")
    return f"### Over-represented among the flagged\n\n{_markdown(head, rows, 'llrrrrr')}" if rows else ""


def _group_markdown(group: GroupReport) -> str:
    """The sentence on a tree, and its leaves where there is a pattern."""
    title = f"### {escape_markdown(group.grouping.capitalize())} group of {escape_markdown(group.class_name)}"
    told = f"{title}\n\n{group.size} examples. {escape_markdown(group_sentence(group), limit=2000)}"
    if not group.pattern:
        return told
    head = ("rule", "examples", "error rate", "95 % interval, held out", "error coverage", "importance", "valid")
    rows = [
        (
            escape_markdown(leaf.rule),
            str(leaf.size),
            number(leaf.error_rate),
            interval(leaf.interval),
            number(leaf.error_coverage),
            number(leaf.importance),
            "yes" if leaf.valid else "no",
        )
        for leaf in sorted(group.leaves, key=lambda leaf: -leaf.importance)
    ]
    return f"{told}\n\n{_markdown(head, rows, 'lrrrrrl')}"


def _gain(entry: ClassReport) -> float | None:
    """ALER - BER of the label group."""
    return None if entry.aler is None or entry.base_error_rate is None else entry.aler - entry.base_error_rate


def _captions(entry: ClassReport) -> tuple[str, str]:
    """The best caption of either end; for a skipped class the reason."""
    if entry.skipped is not None:
        return f"({clean(entry.skipped)})", NOTHING
    ends = (entry.hardest_captions, entry.easiest_captions)
    hardest, easiest = (shorten_caption(c[0]) if entry.pattern and c else NOTHING for c in ends)
    return hardest, easiest


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> str:
    rule = ["---:" if a == "r" else ":---" for a in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _share(left: int, first: int, second: int) -> tuple[int, int]:
    """Give two columns their natural widths if they fit into ``left``, else to each at least half of it."""
    half = max(left // 2, 8)
    if first + second <= left:
        return first, second
    if first <= half:
        return first, max(left - first, 8)
    return (max(left - second, 8), second) if second <= half else (half, half)


def _columns(text: str) -> int:
    """Terminal columns: wide characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _pad(text: str, width: int, right: bool) -> str:
    if _columns(text) > width:
        while _columns(text) >= width:
            text = text[:-1]
        text += "…"
    space = " " * (width - _columns(text))
    return space + text if right else text + space
