"""What a sink is, and how many of them are served without one failure stopping the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from lightning_failures.records import ClassReport, FailureReport
from lightning_failures.visuals import Picture

__all__ = ["Sink", "found_captions", "tag_prefix", "write_all"]


class Sink(Protocol):
    """A place where people read reports. It is only ever called in the first process."""

    def write(self, report: FailureReport, pictures: Sequence[Picture], step: int) -> None:
        """Write one analysis; ``step`` is the global step of the training."""
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


def write_all(
    sinks: Iterable[Sink], report: FailureReport, pictures: Sequence[Picture], step: int
) -> list[tuple[Sink, Exception]]:
    """Write to every sink; return those that failed, with their errors."""
    failed: list[tuple[Sink, Exception]] = []
    for sink in sinks:
        try:
            sink.write(report, pictures, step)
        except Exception as error:
            failed.append((sink, error))
    return failed
