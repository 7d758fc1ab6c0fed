"""The result of one analysis: the report, and the fitted objects that it was computed from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.held_out import HeldOutParts
from lightning_failures.data.report import FailureReport
from lightning_failures.directions.result import FailureDirections
from lightning_failures.directions.shared import SharedDirection
from lightning_failures.trees.fit import FailureTree

_DISPLAYS: list[Callable[[Any], str]] = []


def register_display(display: Callable[[Any], str]) -> None:
    """Show results in notebooks by the HTML that a function returns; the last one registered counts.

    :mod:`lightning_failures.report` registers its page. The analysis itself makes no pages.
    """
    _DISPLAYS.append(display)


@dataclass(frozen=True)
class AnalysisResult:
    """A :class:`~lightning_failures.FailureReport` with the fitted objects behind it.

    The result answers the keys and attributes of its report: ``result["classes"]``, ``result.accuracy``.

    Attributes:
        report: The content of ``report.json``.
        directions: The fitted failure directions; None without embeddings.
        trees: The fitted failure trees by grouping and class name.
        table: One row per graded example: label, prediction, confidence, decision value, leaves.
        parts: The held-out parts of the validation set while interventions are on, else None.
        shared: The direction that all classes share; None without one.
        fitted: The fitted objects of additional methods, by name.

    >>> result = AnalysisResult(FailureReport(examples=2, accuracy=0.5, classes=()))
    >>> result.accuracy, result["examples"], result.with_report(epoch=3).report.epoch
    (0.5, 2, 3)
    """

    report: FailureReport
    directions: FailureDirections | None = None
    trees: Mapping[tuple[str, str], FailureTree] = field(default_factory=dict)
    table: ExampleTable | None = None
    parts: HeldOutParts | None = None
    shared: SharedDirection | None = None
    fitted: Mapping[str, Any] = field(default_factory=dict)

    def with_report(self, **changes: Any) -> AnalysisResult:
        """Return the result with some fields of its report replaced."""
        return replace(self, report=replace(self.report, **changes))

    def _repr_html_(self) -> str | None:
        """Return the result for a notebook, or None if nothing shows results."""
        return _DISPLAYS[-1](self) if _DISPLAYS else None

    def __getitem__(self, key: str) -> Any:
        return self.report[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "report":  # copies and unpickled results have no report yet
            raise AttributeError(name)
        return getattr(self.report, name)
