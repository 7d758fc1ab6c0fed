"""What a run leaves on disk, read back: reports, the table of examples, pictures. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_failures.examples import ExampleTable
from lightning_failures.gallery import Gallery
from lightning_failures.records import FailureReport

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """One run, as its files tell.

    Attributes:
        folder: ``<log_dir>/failures``.
        report: The last report.
        history: All reports of the same stage and loader, by step, the last one included.
        table: All examples of the last report; None where there is no file.
        gallery: The pictures that were drawn last; None where there are none.
    """

    folder: Path
    report: FailureReport
    history: tuple[FailureReport, ...]
    table: ExampleTable | None = None
    gallery: Gallery | None = None
