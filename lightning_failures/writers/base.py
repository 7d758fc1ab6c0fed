"""The protocol of a writer, the limits that it declares, and what several writers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.report import ClassReport, FailureReport
from lightning_failures.report.gallery import Gallery


@dataclass(frozen=True)
class WriterLimits:
    """What a writer shows of an analysis; ``lightning-failures doctor`` compares a configuration with it.

    Attributes:
        name: Of the place, for messages, such as "TensorBoard".
        note: Anything else that users should know before the run, such as "one row a class"; or empty.
        pictures: The most pictures shown of one analysis; 0 for none, None for all.
        drawings: The most drawings of one picture that are kept over a run; None for all.
        classes: The most classes in the table of one analysis; None for all.
        examples: The most single examples shown; 0 for none, None for all thumbnails of the gallery.
        examples_in: Where examples are shown, such as "a table".
        examples_need_embeddings: Whether only embedded examples are shown.
    """

    name: str
    note: str = ""
    pictures: int | None = None
    drawings: int | None = None
    classes: int | None = None
    examples: int | None = 0
    examples_in: str = ""
    examples_need_embeddings: bool = False


class Writer(ABC):
    """A place where people read reports. Only :meth:`write` has to be implemented.

    All methods are called in the first process (rank 0) only. An exception in one of them is reported once, and neither
    stops the training nor the other writers.
    """

    @abstractmethod
    def write(self, result: AnalysisResult, step: int) -> None:
        """Write the numbers and texts of one analysis; ``step`` is the global step of the training."""

    def show(self, result: AnalysisResult, gallery: Gallery, step: int) -> None:  # noqa: B027 - optional
        """Add the pictures of an analysis, after :meth:`write`. By default nothing is shown.

        The result is that of :meth:`write`, its report with ``features``, which are found when the pictures are drawn.
        """

    def write_verdict(self, result: AnalysisResult, step: int) -> None:  # noqa: B027 - optional
        """Add the verdict on the interventions, after the training, to the last report. By default nothing is added."""

    def limits(self) -> WriterLimits:
        """Return what this writer shows at most. By default it is said to show everything but single examples."""
        return WriterLimits(type(self).__name__)


def each_writer(writers: Iterable[Writer], act: Callable[[Writer], None]) -> list[tuple[Writer, Exception]]:
    """Call ``act`` on every writer; return the writers that raised, with their exceptions."""
    failed: list[tuple[Writer, Exception]] = []
    for writer in writers:
        try:
            act(writer)
        except Exception as error:
            failed.append((writer, error))
    return failed


def tag_prefix(report: FailureReport) -> str:
    """Return the prefix of a report's tags; the first validation loader has the bare one.

    >>> tag_prefix(FailureReport(0, None, (), stage="test", dataloader=1))
    'failures/test/dataloader_1'
    """
    parts = ["failures"]
    if report.stage == "test":
        parts.append("test")
    if report.dataloader:
        parts.append(f"dataloader_{report.dataloader}")
    return "/".join(parts)


def best_captions(entry: ClassReport) -> dict[str, str | None]:
    """Return the best caption of each end as table cells; None without a pattern, where captions describe noise."""
    return {
        "hardest_caption": entry.hardest_captions[0] if entry.pattern and entry.hardest_captions else None,
        "easiest_caption": entry.easiest_captions[0] if entry.pattern and entry.easiest_captions else None,
    }
