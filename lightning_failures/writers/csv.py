"""CSV: one row a class and analysis, in a table next to Lightning's ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.atomic import replacing
from lightning_failures.report.tables import heldout_gains
from lightning_failures.writers.base import Writer, WriterLimits, best_captions

COLUMNS = (
    "stage", "epoch", "step", "dataloader", "name", "examples", "accuracy", "cv_score", "cv_score_stderr", "p_value",
    "pattern", "strength", "flagged_error_rate", "unflagged_error_rate", "gain", "c", "flagged",
    "heldout_aler_minus_ber", "aler", "base_error_rate", "hardest_caption", "easiest_caption", "skipped",
)  # fmt: skip

USER_TEXT_COLUMNS = ("name", "hardest_caption", "easiest_caption", "skipped")
"""Columns with untrusted text: a class name may be the name of a folder in a downloaded data set."""

ANALYSIS_COLUMNS = ("stage", "step", "dataloader")
"""Columns that identify an analysis."""

_UNSAFE = {0: "\ufffd", ord("\r"): " "}  # before Python 3.13, csv does not quote "\r" and cannot read "\0"
_MAX_CHARACTERS = 100_000  # csv reads fields of up to 131,072 characters


@dataclass(frozen=True)
class CSVWriter(Writer):
    """Writes ``failure_classes.csv``, one row a class and analysis; rows of a repeated analysis are replaced.

    The table is copied row by row, so that memory does not grow with the number of analyses.
    """

    folder: Path

    def write(self, result: AnalysisResult, step: int) -> None:
        """Add the rows of one analysis."""
        report = result.report
        path = self.folder / "failure_classes.csv"
        gains = heldout_gains(report)
        where = {"stage": report.stage or "", "epoch": report.epoch, "step": step, "dataloader": report.dataloader}
        analysis_of = itemgetter(*map(COLUMNS.index, ANALYSIS_COLUMNS))
        this_analysis = tuple(str(where[key]) for key in ANALYSIS_COLUMNS)
        with replacing(path) as file:
            # class names may hold bytes that are not UTF-8, as in the other files
            text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            complete = (row for row in _stored_rows(path) if len(row) == len(COLUMNS))
            writer.writerows(row for row in complete if analysis_of(row) != this_analysis)
            for entry in report.classes:
                gain = {"heldout_aler_minus_ber": gains.get(entry.name)}
                cells = _cells(entry.to_dict() | best_captions(entry) | gain | where)
                writer.writerow([cells[column] for column in COLUMNS])
            text.detach()

    def limits(self) -> WriterLimits:
        """Return that a table has rows and no pictures."""
        return WriterLimits("CSV", note="one row a class", pictures=0)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with its texts made safe for every CSV reader and spreadsheet."""
    return {
        column: safe_cell(value, guarded=column in USER_TEXT_COLUMNS) if isinstance(value, str) else value
        for column, value in row.items()
    }


def safe_cell(text: str, *, guarded: bool) -> str:
    r"""Return text that every CSV reader reads back as one cell and, if ``guarded``, no spreadsheet evaluates.

    An apostrophe in front makes a spreadsheet show a formula instead of computing it.

    >>> safe_cell("=HYPERLINK(0)", guarded=True), safe_cell("cat-dog", guarded=True)
    ("'=HYPERLINK(0)", 'cat-dog')
    """
    text = text[:_MAX_CHARACTERS].translate(_UNSAFE)
    first = unicodedata.normalize("NFKC", text.lstrip()[:1])  # full-width signs begin formulas too
    return f"'{text}" if guarded and first in ("=", "+", "-", "@") else text


def _stored_rows(path: Path) -> Iterator[list[str]]:
    """Yield the rows of an existing table; a table with other columns is renamed to ``.old.csv``."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) == COLUMNS:
            yield from reader
            return
    path.replace(path.with_suffix(".old.csv"))  # of another version: kept, but not mixed with ours
