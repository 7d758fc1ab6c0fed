"""CSV: all classes of all analyses in one table beside Lightning's ``metrics.csv``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_failures.atomic import write_atomically
from lightning_failures.records import FailureReport
from lightning_failures.sinks.base import found_captions
from lightning_failures.sinks.files import to_bytes
from lightning_failures.visuals import Picture

__all__ = ["CSVSink"]

COLUMNS = (
    "stage", "epoch", "step", "dataloader", "name", "examples", "accuracy", "cv_score", "cv_score_stderr", "p_value",
    "pattern", "c", "flagged", "aler", "base_error_rate", "hardest_caption", "easiest_caption", "skipped",
)  # fmt: skip


@dataclass(frozen=True)
class CSVSink:
    """``failure_classes.csv``: one row a class and analysis. Rows of a step that is analysed again are replaced."""

    folder: Path

    def write(self, report: FailureReport, pictures: Sequence[Picture], step: int) -> None:
        """Add the rows of one analysis."""
        path = self.folder / "failure_classes.csv"
        where = {"stage": report.stage or "", "epoch": report.epoch, "step": step, "dataloader": report.dataloader}
        same = ("stage", "step", "dataloader")
        rows = [row for row in _read(path) if any(row[key] != str(where[key]) for key in same)]
        rows += [_cells(entry.to_dict() | found_captions(entry) | where) for entry in report.classes]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, to_bytes(text.getvalue()))


_UNSAFE = {0: "\ufffd", ord("\r"): " "}  # Python before 3.13 does not quote the one and does not read the other
_LONGEST = 100_000  # Python reads fields of up to 131,072 characters


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Text that any CSV reader reads back as one cell."""
    return {k: v[:_LONGEST].translate(_UNSAFE) if isinstance(v, str) else v for k, v in row.items()}


def _read(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) == COLUMNS:
            return list(reader)
    path.replace(path.with_suffix(".old.csv"))  # of another version: kept, not mixed
    return []
