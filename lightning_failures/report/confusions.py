"""Confusions as text: which classes are mistaken for which, and what the flagged failures are mistaken for."""

from __future__ import annotations

from collections.abc import Callable

from lightning_failures.core.text import clean, escape_markdown, p_text, percent
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.report.tables import rank_classes
from lightning_failures.report.text_tables import pipe_table


def confusion_sentence(entry: ClassReport, escape: Callable[[str], str] = clean) -> str:
    """Return what the failures of a class are mistaken for; empty if that is not known.

    Args:
        entry: The class.
        escape: Makes the names of classes fit for display.

    >>> from lightning_failures.data.report import FlaggedConfusionReport, MistakenReport
    >>> entry = ClassReport("cat", 90, mistaken_for=(MistakenReport("dog", 24, 0.6), MistakenReport("owl", 16, 0.4)))
    >>> confusion_sentence(entry)
    'Mostly mistaken for dog (24 failures, 60.0 %), then owl (40.0 %).'
    """
    if not entry.mistaken_for:
        return ""
    first, *others = entry.mistaken_for
    then = "".join(f", then {escape(row.class_name)} ({percent(row.share)})" for row in others[:2])
    failures = f"{first.count} {'failure' if first.count == 1 else 'failures'}"
    text = f"{_mostly(first.share)} mistaken for {escape(first.class_name)} ({failures}, {percent(first.share)}){then}."
    if flagged := entry.flagged_mistaken_for:
        text += (
            f" The flagged failures are {_mostly(flagged.share).lower()} mistaken for {escape(flagged.class_name)}:"
            f" {percent(flagged.share)} of them, {percent(flagged.share_of_others)} of the others"
            f" ({p_text(flagged.p_value)})."
        )
    return text + _split_text(entry, escape)


def _split_text(entry: ClassReport, escape: Callable[[str], str]) -> str:
    """Return which failures of a class follow its pattern, by what they are mistaken for; empty without a split."""
    if not entry.confusion_split:
        return ""
    parts = sorted(entry.confusion_split, key=lambda part: not part.pattern)
    of_correct = percent(parts[0].flagged_share_of_correct)
    found = [(escape(part.class_name), percent(part.flagged_share)) for part in parts if part.pattern]
    others = [(escape(part.class_name), percent(part.flagged_share)) for part in parts if not part.pattern]
    texts = [f"of those as {name}, {share}" for name, share in found]
    if texts:
        texts[0] = f"Of its failures as {found[0][0]}, {found[0][1]} are flagged"
    texts += [f"those as {name} show no clear pattern: {share} are flagged" for name, share in others]
    text = "; ".join(texts)
    ending = (
        f", as are {of_correct} of the correct images."
        if others
        else f". Of the correct images, {of_correct} are flagged."
    )
    return f" {text[0].upper()}{text[1:]}{ending}"


def confusion_lines(report: FailureReport, limit: int = 10) -> list[str]:
    """Return one line for each of the most frequent confusions, then what flags explain, for the terminal.

    >>> from lightning_failures.data.report import ConfusionReport
    >>> confusion_lines(FailureReport(90, 0.9, (), confusions=(ConfusionReport("cat", "dog", 24, 0.6),)))
    ['cat -> dog: 24 failures, 60.0 % of those of cat']
    """
    lines = [
        f"{clean(pair.label)} -> {clean(pair.prediction)}: {pair.count} {'failure' if pair.count == 1 else 'failures'},"
        f" {percent(pair.share)} of those of {clean(pair.label)}"
        for pair in report.confusions[:limit]
    ]
    explained = [entry for entry in rank_classes(report) if entry.flagged_mistaken_for is not None]
    return lines + [f"{clean(entry.name)}: {confusion_sentence(entry)}" for entry in explained[:limit]]


def confusions_markdown(report: FailureReport, *, limit: int = 30) -> str:
    """Return the most frequent confusions as a Markdown table, and what each class is mistaken for; empty without any.

    Args:
        report: One analysis.
        limit: Most classes, the worst ones.
    """
    if not report.confusions:
        return ""
    rows = [
        (escape_markdown(pair.label), escape_markdown(pair.prediction), str(pair.count), percent(pair.share))
        for pair in report.confusions
    ]
    head = ("label", "prediction", "failures", "share of the label's failures")
    confused = [entry for entry in rank_classes(report) if entry.mistaken_for]
    lines = [
        f"* **{escape_markdown(entry.name)}**: {confusion_sentence(entry, escape_markdown)}"
        for entry in confused[:limit]
    ]
    return "\n".join(["### Confusions", "", pipe_table(head, rows, "llrr"), "", *lines]).rstrip()


def _mostly(share: float) -> str:
    return "Mostly" if share > 0.5 else "Most often"
