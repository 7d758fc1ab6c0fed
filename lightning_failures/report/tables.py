"""Tables and lists of a report, for the terminal and as Markdown.

Captions describe noise without a pattern, so they are shown for classes with a pattern only.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from lightning_failures.core.text import (
    NOTHING,
    clean,
    escape_markdown,
    number,
    p_text,
    percent,
    percent_interval,
    points,
    shorten_caption,
)
from lightning_failures.data.grouping import LABEL
from lightning_failures.data.records import ValueReport
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.report.findings import class_confidence
from lightning_failures.report.sentences import (
    counterfactual_sentence,
    diagnosis_sentence,
    group_sentence,
    trust_sentence,
)
from lightning_failures.report.text_tables import aligned_table, pipe_table, terminal_width

_ENDS = ("hardest caption", "easiest caption")
"""Titles of the columns of captions."""


def verdict(entry: ClassReport) -> str:
    """Return the p-value of a class with a pattern, else the reason why there is no pattern.

    >>> verdict(ClassReport("cat", 9, p_value=0.001, pattern=True)), verdict(ClassReport("cat", 9, p_value=0.4))
    ('<= 0.001', 'no pattern')
    """
    if entry.skipped is not None:
        return "skipped"
    if entry.pattern:
        return p_text(entry.p_value, "")
    return NOTHING if entry.p_value is None else "no pattern"


def score(entry: ClassReport) -> str:
    """Return the CV score with its standard error.

    >>> score(ClassReport("cat", 9, cv_score=0.79, cv_score_stderr=0.033)), score(ClassReport("cat", 9))
    ('79.0 % +- 3.3 %', '-')
    """
    stderr = entry.cv_score_stderr
    return percent(entry.cv_score) + ("" if stderr is None else f" +- {percent(stderr)}")


def gain(entry: ClassReport) -> str:
    """Return the gain of a class, with its share of the failures of all classes.

    >>> gain(ClassReport("cat", 9, gain=13.25, gain_share=0.074)), gain(ClassReport("cat", 9))
    ('13.2 (7.4 %)', '-')
    """
    share = entry.gain_share
    return number(entry.gain, ".1f") + ("" if share is None else f" ({percent(share)})")


def class_names(report: FailureReport) -> list[str]:
    """Return the names of all classes."""
    return [entry.name for entry in report.classes]


def rank_classes(report: FailureReport) -> list[ClassReport]:
    """Return the classes that it pays most to fix first: patterns by their gain, then the others by error rate."""
    return sorted(report.classes, key=lambda entry: entry.rank)


def class_table(report: FailureReport, *, width: int = 140) -> str:
    """Return an aligned table for the terminal, one class a line, at most ``width`` columns wide where possible.

    >>> print(class_table(FailureReport(9, 0.5, (ClassReport("cat", 9, accuracy=0.5, gain=2.0),)), width=99))
    class  error rate  of flagged  of others  gain  how sure  CV score  p-value  held-out ALER - BER  hardest…  easiest…
    cat        50.0 %           -          -   2.0         -         -        -                    -  -         -
    """
    head = (
        "class",
        "error rate",
        "of flagged",
        "of others",
        "gain",
        "how sure",
        "CV score",
        "p-value",
        "held-out ALER - BER",
        *_ENDS,
    )
    gains = heldout_gains(report)
    rows = [
        (
            clean(c.name),
            percent(None if c.accuracy is None else 1 - c.accuracy),
            percent(c.flagged_error_rate),
            percent(c.unflagged_error_rate),
            number(c.gain, ".1f"),
            class_confidence(c),
            score(c),
            verdict(c),
            points(gains.get(c.name)),
            *_captions(c),
        )
        for c in rank_classes(report)
    ]
    # captions share the width that the other columns leave
    natural = [max(map(terminal_width, column)) for column in zip(head, *rows, strict=True)]
    name = min(natural[0], 24)
    *numbers, hardest, easiest = natural[1:]
    left = width - name - sum(numbers) - (len(head) - 1) * 2
    widths = (name, *numbers, *_caption_widths(left, hardest, easiest))
    return aligned_table([head, *rows], widths, f"l{'r' * len(numbers)}ll")


def heldout_gains(report: FailureReport) -> dict[str, float | None]:
    """Return held-out ALER - BER of the tree of each class's label group, by class name."""
    return {group.class_name: group.heldout_aler_minus_ber for group in report.groups if group.grouping == LABEL.name}


def error_changes(report: FailureReport, before: FailureReport | None) -> dict[str, float]:
    """Return the change of each class's error rate since an earlier report, where both are defined.

    Classes that share a name are left out, because they cannot be distinguished.

    >>> then, now = (FailureReport(9, None, (ClassReport("cat", 9, accuracy=value),)) for value in (0.5, 0.75))
    >>> error_changes(now, then), error_changes(now, None)
    ({'cat': -0.25}, {})
    """
    if before is None:
        return {}
    names_now = Counter(entry.name for entry in report.classes)
    names_then = Counter(entry.name for entry in before.classes)
    accuracy_then = {entry.name: entry.accuracy for entry in before.classes}
    changes = {}
    for entry in report.classes:
        earlier = accuracy_then.get(entry.name)
        unique = names_now[entry.name] == names_then[entry.name] == 1
        if unique and entry.accuracy is not None and earlier is not None:
            changes[entry.name] = earlier - entry.accuracy
    return changes


def classes_markdown(report: FailureReport, *, limit: int | None = None, before: FailureReport | None = None) -> str:
    """Return a Markdown table of the classes with their support, those first that it pays most to fix.

    Args:
        report: One analysis.
        limit: Most classes in the table; a line says how many are left out.
        before: An earlier report; the changes of the error rates since then get a column.
    """
    ranked = rank_classes(report)
    changes = error_changes(report, before)
    shrunk = any(c.error_rate_shrunk is not None for c in ranked)
    gains = heldout_gains(report)
    added = report.method_columns()
    place = {entry.name: k for k, entry in enumerate(report.classes)}
    rows = [
        (
            escape_markdown(c.name),
            str(c.examples),
            percent(None if c.accuracy is None else 1 - c.accuracy),
            *([] if before is None else [points(changes.get(c.name))]),
            *([_shrunk(c)] if shrunk else []),
            percent(c.flagged_error_rate),
            percent(c.unflagged_error_rate),
            percent(c.failures_flagged),
            gain(c),
            class_confidence(c),
            score(c),
            verdict(c),
            points(gains.get(c.name)),
            *(_cell(values[place[c.name]]) for values in added.values()),
            *map(escape_markdown, _captions(c)),
        )
        for c in ranked[:limit]
    ]
    head = (
        "class",
        "examples",
        "error rate",
        *([] if before is None else ["change"]),
        *(["shrunk (95 % interval)"] if shrunk else []),
        "of flagged",
        "of others",
        "failures flagged",
        "gain",
        "how sure",
        "CV score",
        "p-value",
        "held-out ALER - BER",
        *map(escape_markdown, added),
        *_ENDS,
    )
    more = len(ranked) - len(rows)
    return pipe_table(head, rows, f"l{'r' * (len(head) - 3)}ll") + (
        f"\n\n{more} classes with less to gain are in report.json." if more else ""
    )


def _shrunk(entry: ClassReport) -> str:
    """Return the shrunken error rate with its interval."""
    ends = entry.error_rate_interval
    return percent(entry.error_rate_shrunk) + ("" if ends is None else f" ({percent_interval(ends)})")


def _cell(value: Any) -> str:
    """Return the value of a column of an additional method as text."""
    return number(value) if value is None or isinstance(value, float) else escape_markdown(str(value))


def tree_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return the kinds of groups, then the rules of the trees as Markdown, one section a group; empty without trees.

    A group without a pattern gets one sentence: its leaves are in ``report.json``, but they are noise.

    Args:
        report: One analysis.
        limit: Most groups; groups with a pattern come first, by descending held-out ALER - BER.
    """
    # a pattern first, then the strongest
    ranked = sorted(report.groups, key=lambda g: (not g.pattern, -(g.heldout_aler_minus_ber or 0.0)))
    kinds = "\n".join(f"* {escape_markdown(line)}" for line in grouping_lines(report))
    return "\n\n".join(filter(None, [kinds, *(_group_markdown(group) for group in ranked[:limit])]))


def grouping_lines(report: FailureReport) -> list[str]:
    """Return one line for each kind of group: how well its trees predict failures, as found.

    >>> groups = tuple(GroupReport("label", "cat", 90, heldout_aler_minus_ber=gain) for gain in (0.1, 0.3))
    >>> grouping_lines(FailureReport(180, 0.5, (), groups))
    ['label groups: mean held-out ALER - BER +20.0 points over 2 trees, 0 of them with a pattern']
    """
    lines = []
    for grouping in dict.fromkeys(group.grouping for group in report.groups):
        tested = [
            group
            for group in report.groups
            if group.grouping == grouping and group.skipped is None and group.heldout_aler_minus_ber is not None
        ]
        if tested:
            mean = sum(group.heldout_aler_minus_ber or 0.0 for group in tested) / len(tested)
            lines.append(
                f"{clean(grouping)} groups: mean held-out ALER - BER {points(mean)} over {len(tested)} trees,"
                f" {sum(group.pattern for group in tested)} of them with a pattern"
            )
    return lines


def strongest_values(entry: ClassReport, limit: int = 3) -> list[ValueReport]:
    """Return the metadata values that are over-represented among the flagged examples of a class, strongest first.

    A value is over-represented if the interval of its share of the flagged examples lies above its share of all
    examples; its strength is the ratio of the lower bound to that share. Without a pattern, nothing is returned,
    because flagged examples are noise.
    """
    rows = [row for row in entry.enrichment if entry.pattern and row.lift > 1]
    return sorted(rows, key=lambda row: -row.lift)[:limit]


def enrichment_lines(report: FailureReport) -> list[str]:
    """Return one line for each class with an over-represented metadata value, for the terminal.

    >>> red = ValueReport("tint", "red", 5, 4, share=0.1, share_of_flagged=0.8, share_of_flagged_interval=(0.5, 0.9))
    >>> enrichment_lines(FailureReport(50, 0.9, (ClassReport("cat", 50, pattern=True, enrichment=(red,)),)))
    ['cat: tint = red: 80.0 % (50.0 to 90.0 %) of the flagged examples, 10.0 % of all']
    """
    return [
        f"{clean(entry.name)}: {clean(row.attribute)} = {clean(row.value)}: {percent(row.share_of_flagged)}"
        f" ({percent_interval(row.share_of_flagged_interval)}) of the flagged examples, {percent(row.share)} of all"
        for entry in rank_classes(report)
        for row in strongest_values(entry, limit=1)
    ]


def trust_lines(report: FailureReport, limit: int | None = None) -> list[str]:
    """Return one line a class on how far to trust its finding, in the order of :func:`rank_classes`, for the terminal.

    >>> trust_lines(FailureReport(9, 0.5, (ClassReport("cat", 9, accuracy=0.5, skipped="4 failures"),)))
    ['cat: Skipped: 4 failures.']
    """
    names = class_names(report)
    return [f"{clean(entry.name)}: {trust_sentence(entry, names)}" for entry in rank_classes(report)[:limit]]


def trust_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return :func:`trust_lines` as Markdown, for classes with a direction; empty without any.

    Args:
        report: One analysis.
        limit: Most classes.
    """
    with_direction = [entry for entry in rank_classes(report) if entry.cv_score is not None]
    names = class_names(report)
    lines = [
        f"* **{escape_markdown(entry.name)}**: {escape_markdown(trust_sentence(entry, names), limit=2000)}"
        for entry in with_direction[:limit]
    ]
    return "\n".join(["### How far to trust it", "", *lines]) if lines else ""


def diagnosis_lines(report: FailureReport, limit: int | None = None) -> list[str]:
    """Return the kind of failure and the remedy of each diagnosed class, in the order of :func:`rank_classes`.

    >>> from lightning_failures.data.records import DiagnosisReport
    >>> found = DiagnosisReport("label noise", 0.8, remedy="report.classes[0].doubted_ids")
    >>> diagnosis_lines(FailureReport(9, 0.5, (ClassReport("cat", 9, accuracy=0.5, diagnosis=found),)))
    ['cat: Kind of failure: label noise (80.0 %). Remedy: report.classes[0].doubted_ids']
    """
    lines = []
    for entry in rank_classes(report):
        if entry.diagnosis is not None:
            remedy = "" if entry.diagnosis.remedy is None else f" Remedy: {clean(entry.diagnosis.remedy, 200)}"
            lines.append(f"{clean(entry.name)}: {diagnosis_sentence(entry.diagnosis)}{remedy}")
    return lines[:limit]


def diagnosis_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return the kinds of failure and the remedies as Markdown; empty if no class is diagnosed.

    Args:
        report: One analysis.
        limit: Most classes.
    """
    diagnosed = [(entry, entry.diagnosis) for entry in rank_classes(report) if entry.diagnosis is not None]
    lines = []
    for entry, found in diagnosed[:limit]:
        remedy = "" if found.remedy is None else f" Remedy: {escape_markdown(found.remedy)}"
        sentence = escape_markdown(diagnosis_sentence(found), limit=1000)
        lines.append(f"* **{escape_markdown(entry.name)}**: {sentence}{remedy}")
    return "\n".join(["### Kinds of failure and remedies", "", *lines]) if lines else ""


def checks_markdown(report: FailureReport) -> str:
    """Return the counterfactual checks of features as a Markdown list; empty without any.

    Those of captions are in :func:`trust_markdown`.

    >>> from lightning_failures.data.records import CounterfactualReport
    >>> from lightning_failures.data.report import FeatureReport
    >>> check = CounterfactualReport("pasted", "not measured", "out of time")
    >>> checks_markdown(FailureReport(9, 0.5, (), features=(FeatureReport(3, counterfactual=check),))).splitlines()[-1]
    '* **feature 3**: Counterfactual check: not measured (out of time).'
    """
    lines = []
    for one in report.features:
        if one.counterfactual is not None:
            name = f"feature {one.feature}" + (f' "{one.name}"' if one.name else "")
            sentence = escape_markdown(counterfactual_sentence(one.counterfactual), limit=500)
            lines.append(f"* **{escape_markdown(name)}**: {sentence}")
    return "\n".join(["### Features changed alone", "", *lines]) if lines else ""


def notes_markdown(report: FailureReport) -> str:
    """Return the notes of an analysis as a Markdown list; empty without notes.

    >>> notes_markdown(FailureReport(examples=1, accuracy=1.0, classes=(), notes=("Only a sample was analysed.",)))
    '* Only a sample was analysed.'
    """
    return "\n".join(f"* {escape_markdown(note)}" for note in report.notes)


def enrichment_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return the over-represented metadata values as a Markdown table; empty if there are none.

    Args:
        report: One analysis.
        limit: Most classes.
    """
    with_values = [entry for entry in rank_classes(report) if strongest_values(entry)]
    rows = [
        (
            escape_markdown(entry.name),
            f"{escape_markdown(row.attribute)} = {escape_markdown(row.value)}",
            percent(row.share),
            percent(row.share_of_failures),
            percent(row.share_of_flagged),
            percent_interval(row.share_of_flagged_interval),
            percent(row.share_of_least_confident),
        )
        for entry in with_values[:limit]
        for row in strongest_values(entry)
    ]
    head = ("class", "value", "share of all", "of failures", "of flagged", "95 % interval", "of least confident")
    return f"### Over-represented among the flagged examples\n\n{pipe_table(head, rows, 'llrrrrr')}" if rows else ""


def _group_markdown(group: GroupReport) -> str:
    """Return the sentence on a tree, and a table of its leaves if there is a pattern."""
    title = f"### {escape_markdown(group.grouping.capitalize())} group of {escape_markdown(group.class_name)}"
    text = f"{title}\n\n{group.size} examples. {escape_markdown(group_sentence(group), limit=2000)}"
    if not group.pattern:
        return text
    held_out = ("held-out error rate", "95 % interval", "held-out error coverage", "held-out valid", "gain")
    in_sample = ("error rate in sample", "error coverage in sample", "importance in sample", "valid in sample")
    head = ("rule", "examples", *held_out, *in_sample)
    rows = [
        (
            escape_markdown(leaf.rule),
            str(leaf.size),
            percent(leaf.heldout_error_rate),
            percent_interval(leaf.interval),
            percent(leaf.heldout_error_coverage),
            _yes_or_no(leaf.heldout_valid),
            number(leaf.gain, ".1f"),
            percent(leaf.error_rate),
            percent(leaf.error_coverage),
            percent(leaf.importance),
            _yes_or_no(leaf.valid),
        )
        for leaf in sorted(group.leaves, key=lambda leaf: leaf.rank)
    ]
    return f"{text}\n\n{pipe_table(head, rows, 'lrrrrlrrrrl')}"


def _yes_or_no(value: bool | None) -> str:
    return NOTHING if value is None else "yes" if value else "no"


def _captions(entry: ClassReport) -> tuple[str, str]:
    """Return the best caption of each end; for a skipped class, the reason."""
    if entry.skipped is not None:
        return f"({clean(entry.skipped)})", NOTHING
    ends = (entry.hardest_captions, entry.easiest_captions)
    hardest, easiest = (shorten_caption(c[0]) if entry.pattern and c else NOTHING for c in ends)
    return hardest, easiest


def _caption_widths(left: int, hardest: int, easiest: int) -> tuple[int, int]:
    """Return widths of the two caption columns: the natural ones if they fit into ``left``, else at least half each."""
    half = max(left // 2, 8)
    if hardest + easiest <= left:
        return hardest, easiest
    if hardest <= half:
        return hardest, max(left - hardest, 8)
    return (max(left - easiest, 8), easiest) if easiest <= half else (half, half)
