"""Artificial results of an analysis."""

from __future__ import annotations

from typing import Any

from lightning_failures.analysis import AnalysisResult
from lightning_failures.data import ExampleTable, FailureReport
from lightning_failures.directions import FailureDirections


def analysed(
    *fields: Any,
    table: ExampleTable | None = None,
    directions: FailureDirections | None = None,
    **named: Any,
) -> AnalysisResult:
    """Return a result with the given fields of its report."""
    return AnalysisResult(FailureReport(*fields, **named), directions=directions, table=table)
