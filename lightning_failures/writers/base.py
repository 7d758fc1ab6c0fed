"""What a sink is, and how many of them are served without one failure stopping the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.report.diary import diary_markdown
from lightning_failures.report.gallery import Gallery
from lightning_failures.report.interventions import interventions_markdown
from lightning_failures.report.tables import enrichment_markdown, notes_markdown, tree_markdown, trust_markdown


class Writer(Protocol):
    """A place where people read reports. It is only ever called in the first process."""

    def write(self, report: FailureReport, step: int) -> None:
        """Write one analysis in numbers and words; ``step`` is the global step of the training."""
        ...

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """Add its pictures. The report is that of :meth:`write`, with its features: they are known once drawn."""
        ...

    def conclude(self, report: FailureReport, step: int) -> None:
        """Tell what interventions have come to; the report is that of the last analysis, with their verdict."""
        ...


def tag_prefix(report: FailureReport) -> str:
    """Return what the tags of a report begin with; the bare one belongs to the first validation loader.

    >>> tag_prefix(FailureReport(0, None, (), stage="test", dataloader=1))
    'failures/test/dataloader_1'
    """
    parts = ["failures"]
    if report.stage == "test":
        parts.append("test")
    if report.dataloader:
        parts.append(f"dataloader_{report.dataloader}")
    return "/".join(parts)


def found_captions(entry: ClassReport) -> dict[str, str | None]:
    """Return the best caption of either end for a table; None without a pattern, where it would describe noise."""
    return {
        "hardest_caption": entry.hardest_captions[0] if entry.pattern and entry.hardest_captions else None,
        "easiest_caption": entry.easiest_captions[0] if entry.pattern and entry.easiest_captions else None,
    }


def report_texts(report: FailureReport) -> dict[str, str]:
    """What a dashboard shows of a report in words, as Markdown, beside its table of classes; only what there is.

    >>> report_texts(FailureReport(0, None, (), notes=("A sample.",)))
    {'notes': '* A sample.'}
    """
    texts = {
        "trust": trust_markdown(report),
        "diary": diary_markdown(report),
        "notes": notes_markdown(report),
        "enrichment": enrichment_markdown(report),
        "rules": tree_markdown(report),
        "interventions": interventions_markdown(report),
    }
    return {key: text for key, text in texts.items() if text}


def each_writer(sinks: Iterable[Writer], act: Callable[[Writer], None]) -> list[tuple[Writer, Exception]]:
    """Do something with every sink; return those that failed, with their errors."""
    failed: list[tuple[Writer, Exception]] = []
    for sink in sinks:
        try:
            act(sink)
        except Exception as error:
            failed.append((sink, error))
    return failed
