"""The table of classes and the table of examples as rows of plain values, and pictures as arrays, for loggers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.report import FailureReport
from lightning_failures.report.example_rows import ExampleRow, example_rows
from lightning_failures.report.gallery import Gallery, Picture
from lightning_failures.report.tables import error_changes, heldout_gains, rank_classes
from lightning_failures.writers.base import best_captions

COLUMNS = (
    "epoch", "class", "examples", "accuracy", "error_rate", "change", "cv_score", "cv_score_stderr", "p_value",
    "pattern", "strength", "flagged_error_rate", "unflagged_error_rate", "gain", "heldout_aler_minus_ber", "aler",
    "base_error_rate", "hardest_caption", "easiest_caption", "skipped",
)  # fmt: skip
"""Columns of :func:`class_rows`, before those of additional methods."""

MAX_ROWS = 10_000
MAX_IMAGES = 108
MAX_EXAMPLES = 500
"""Most rows of the table of classes, pictures, and single examples that a logger gets of one analysis."""

EXAMPLE_COLUMNS = (
    "epoch", "id", "label", "prediction", "right", "confidence", "decision_value", "flagged", "leaf",
)  # fmt: skip
"""Columns of :func:`example_rows_of`."""


def class_columns(report: FailureReport) -> list[str]:
    """Return the names of the columns of :func:`class_rows`, with those of additional methods."""
    return [*COLUMNS, *map(utf8, report.method_columns())]


def without_details(report: FailureReport) -> FailureReport:
    """Return what the table of the next analysis needs of this one."""
    return FailureReport(report.examples, report.accuracy, report.classes)


def class_rows(report: FailureReport, before: FailureReport | None, limit: int) -> list[list[Any]]:
    """Return the rows of the table of classes, those first that it pays most to fix, as :data:`COLUMNS`.

    Args:
        report: One analysis.
        before: The analysis before, for the changes of error rates; or None.
        limit: Most rows.
    """
    changes, rows = error_changes(report, before), []
    added, gains = report.method_columns(), heldout_gains(report)
    place = {entry.name: k for k, entry in enumerate(report.classes)}
    for entry in rank_classes(report)[:limit]:
        cells = entry.to_dict() | best_captions(entry)
        cells |= {
            "epoch": report.epoch,
            "class": entry.name,
            "error_rate": None if entry.accuracy is None else 1 - entry.accuracy,
            "change": changes.get(entry.name),
            "heldout_aler_minus_ber": gains.get(entry.name),
        }
        of_methods = [values[place[entry.name]] for values in added.values()]
        rows.append([utf8(cell) for cell in (*(cells[column] for column in COLUMNS), *of_methods)])
    return rows


def failures_first(report: FailureReport, table: ExampleTable, ids: Tensor, limit: int) -> list[tuple[int, ExampleRow]]:
    """Return some examples, failures first, by ascending decision value, with their places in ``ids``.

    Args:
        report: Names of features and rules of leaves.
        table: The examples.
        ids: (n,) int64, all of them in the table.
        limit: Most examples.
    """

    def order(item: tuple[int, ExampleRow]) -> tuple[bool, bool, float]:
        _, row = item
        return row.right, row.decision_value is None, row.decision_value or 0.0

    return sorted(enumerate(example_rows(report, table, ids)), key=order)[:limit]


def example_rows_of(result: AnalysisResult, gallery: Gallery) -> list[tuple[int, list[Any]]]:
    """Return the rows of the table of examples, as :data:`EXAMPLE_COLUMNS`, each with the index of its thumbnail.

    Args:
        result: The analysis.
        gallery: Its thumbnails are the examples; without thumbnails, or without a table, there are no rows.
    """
    if gallery.thumbnails is None or result.table is None:
        return []
    shown = failures_first(result.report, result.table, gallery.thumbnails.ids, MAX_EXAMPLES)
    return [(k, [result.report.epoch, *(utf8(value) for value in astuple(row))]) for k, row in shown]


def pictures_of(gallery: Gallery) -> Iterator[tuple[Picture, NDArray[np.uint8]]]:
    """Yield the pictures for a logger, each with its pixels (h, w, 3), uint8."""
    for picture in gallery.logged[:MAX_IMAGES]:
        yield picture, pixels(picture.image)


def pixels(image: Tensor) -> NDArray[np.uint8]:
    """Return an image (3, h, w) uint8 as an array (h, w, 3)."""
    found: NDArray[np.uint8] = image.permute(1, 2, 0).numpy()
    return found


def utf8(value: Any) -> Any:
    """Escape bytes that are not UTF-8, which folder names on Linux may hold and loggers reject."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
