"""CSV: all classes of all analyses in one table beside Lightning's ``metrics.csv``."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning_failures.core.atomic import replacing
from lightning_failures.data.report import FailureReport
from lightning_failures.report.gallery import Gallery
from lightning_failures.writers.base import found_captions

COLUMNS = (
    "stage", "epoch", "step", "dataloader", "name", "examples", "accuracy", "cv_score", "cv_score_stderr", "p_value",
    "pattern", "c", "flagged", "aler", "base_error_rate", "hardest_caption", "easiest_caption", "skipped",
)  # fmt: skip


USER_TEXT = ("name", "hardest_caption", "easiest_caption", "skipped")
"""Columns with words of the user, who may be anybody: a name of a folder in a data set that was downloaded."""

SAME = ("stage", "step", "dataloader")
"""What tells that two rows are of one analysis."""


@dataclass(frozen=True)
class CSVWriter:
    """``failure_classes.csv``: one row a class and analysis. Rows of a step that is analysed again are replaced.

    The table is copied row by row, so that it takes no memory, however many analyses a run has.
    """

    folder: Path

    def write(self, report: FailureReport, step: int) -> None:
        """Add the rows of one analysis."""
        path = self.folder / "failure_classes.csv"
        where = {"stage": report.stage or "", "epoch": report.epoch, "step": step, "dataloader": report.dataloader}
        same, now = itemgetter(*map(COLUMNS.index, SAME)), tuple(str(where[key]) for key in SAME)
        with replacing(path) as file:
            # names may hold bytes that are no UTF-8, as in the other files
            text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(row for row in _rows(path) if len(row) == len(COLUMNS) and same(row) != now)
            for entry in report.classes:
                cells = _cells(entry.to_dict() | found_captions(entry) | where)
                writer.writerow([cells[column] for column in COLUMNS])
            text.detach()

    def show(self, report: FailureReport, gallery: Gallery, step: int) -> None:
        """A table has no pictures."""

    def conclude(self, report: FailureReport, step: int) -> None:
        """And no verdicts."""


_UNSAFE = {0: "\ufffd", ord("\r"): " "}  # Python before 3.13 does not quote the one and does not read the other
_LONGEST = 100_000  # Python reads fields of up to 131,072 characters


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Text that any CSV reader reads back as one cell, and that no spreadsheet takes for a formula."""
    return {k: _plain(v, guarded=k in USER_TEXT) if isinstance(v, str) else v for k, v in row.items()}


def _plain(text: str, *, guarded: bool) -> str:
    r"""An apostrophe in front makes a spreadsheet show what else it would compute.

    >>> _plain("=HYPERLINK(0)", guarded=True), _plain("cat-dog", guarded=True)
    ("'=HYPERLINK(0)", 'cat-dog')
    """
    text = text[:_LONGEST].translate(_UNSAFE)
    first = unicodedata.normalize("NFKC", text.lstrip()[:1])  # a wide sign counts too
    return f"'{text}" if guarded and first in ("=", "+", "-", "@") else text


def _rows(path: Path) -> Iterator[list[str]]:
    """The rows that are there already."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) == COLUMNS:
            yield from reader
            return
    path.replace(path.with_suffix(".old.csv"))  # of another version: kept, not mixed
