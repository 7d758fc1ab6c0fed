"""Any logger that has ``log_image`` or ``log_table``, as Lightning's own loggers define them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.report import FailureReport
from lightning_failures.report.gallery import Gallery
from lightning_failures.report.markdown import report_markdown
from lightning_failures.writers.base import Writer, WriterLimits, tag_prefix
from lightning_failures.writers.class_table import (
    EXAMPLE_COLUMNS,
    MAX_EXAMPLES,
    MAX_IMAGES,
    MAX_ROWS,
    class_columns,
    class_rows,
    example_rows_of,
    pictures_of,
    utf8,
    without_details,
)


def can_log(logger: Any, what: str) -> bool:
    """Return whether a logger has a method such as ``log_image``.

    >>> can_log(object(), "log_image")
    False
    """
    return callable(getattr(logger, what, None))


@dataclass(frozen=True)
class GenericWriter(Writer):
    """Writes through the methods of a logger that are there, by keyword, as those of Lightning's ``WandbLogger``.

    * ``log_image(key=, images=, step=)`` with a list of one array (h, w, 3), uint8;
    * ``log_table(key=, columns=, data=, step=)`` with names and rows of plain values. The report as Markdown is a table
      of one cell, because loggers agree on no method for texts.

    Attributes:
        logger: Any logger with one of the first two.
    """

    logger: Any
    _previous: dict[str, FailureReport] = field(default_factory=dict, repr=False, compare=False)  # by tag prefix

    def write(self, result: AnalysisResult, step: int) -> None:
        """Log the table of classes, and the report as a table with one cell of Markdown."""
        report = result.report
        prefix = tag_prefix(report)
        before = self._previous.get(prefix)
        rows = class_rows(report, before, MAX_ROWS)
        self._table(f"{prefix}/table", class_columns(report), rows, step)
        self._table(f"{prefix}/report", ["report"], [[utf8(report_markdown(report, before=before))]], step)
        self._previous[prefix] = without_details(report)

    def show(self, result: AnalysisResult, gallery: Gallery, step: int) -> None:
        """Log the pictures and the table of examples."""
        prefix = tag_prefix(result.report)
        if can_log(self.logger, "log_image"):
            for picture, image in pictures_of(gallery):
                self.logger.log_image(key=f"{prefix}/{picture.tag}", images=[image], step=step)
        if rows := [row for _, row in example_rows_of(result, gallery)]:
            self._table(f"{prefix}/examples", [*EXAMPLE_COLUMNS], rows, step)

    def write_verdict(self, result: AnalysisResult, step: int) -> None:
        """Log the report again, with the verdict."""
        report = result.report
        self._table(f"{tag_prefix(report)}/report", ["report"], [[utf8(report_markdown(report))]], step)

    def limits(self) -> WriterLimits:
        """Return what one analysis may log, by the methods that the logger has."""
        tables = can_log(self.logger, "log_table")
        return WriterLimits(
            type(self.logger).__name__,
            note="" if tables else "it has no log_table, so it gets scalars and pictures",
            pictures=MAX_IMAGES if can_log(self.logger, "log_image") else 0,
            classes=MAX_ROWS if tables else 0,
            examples=MAX_EXAMPLES if tables else 0,
            examples_in="a table" if tables else "",
        )

    def _table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        if can_log(self.logger, "log_table"):
            self.logger.log_table(key=key, columns=columns, data=rows, step=step)
