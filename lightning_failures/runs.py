"""What a run leaves on disk, read back: reports, the table of examples, pictures. No model is needed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_failures.examples import ExampleTable
from lightning_failures.gallery import Gallery
from lightning_failures.records import FailureReport

__all__ = ["GALLERY_FILE", "HTML_FILE", "REPORT_FILE", "Run", "analysis_name"]

REPORT_FILE = "report.json"
"""The last report, in a run's folder; and that of each analysis, in its own."""

GALLERY_FILE = "gallery.json"
"""The pictures that were drawn last."""

HTML_FILE = "report.html"
"""The last report for people."""


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


def analysis_name(report: FailureReport, step: int) -> str:
    """The name of the folder of one analysis, inside that of its run.

    >>> analysis_name(FailureReport(0, None, (), epoch=3), 250)
    'epoch=0003-step=000250'
    >>> analysis_name(FailureReport(0, None, (), epoch=3, stage="test"), 250)
    'test-epoch=0003-step=000250'
    """
    name = f"epoch={report.epoch or 0:04d}-step={step:06d}"
    return f"test-{name}" if report.stage == "test" else name
