"""What a sink is, and how many of them are served without one failure stopping the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from lightning_failures.records import FailureReport
from lightning_failures.visuals import Picture

__all__ = ["Sink", "write_all"]


class Sink(Protocol):
    """A place where people read reports. It is only ever called in the first process."""

    def write(self, report: FailureReport, pictures: Sequence[Picture], step: int) -> None:
        """Write one analysis; ``step`` is the global step of the training."""
        ...


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
