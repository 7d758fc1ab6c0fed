"""What methods on the penultimate features of the live model need beside those of the evaluated examples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from lightning_failures.analysis.method import FittableMethod, TrainingReader
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.encoders.frozen import fingerprint
from lightning_failures.methods import Method
from lightning_failures.report.feature_names import FEATURES_FILE, FeatureNames

SPARSE = "sparse"
"""Name of the method, and of its section of the report."""


@dataclass(frozen=True)
class ModelFeatures:
    """The penultimate features of the live model in one analysis.

    Attributes:
        head: Name of the submodule whose input they are; None if they are not observed, or not found.
        problem: Why there are none, or None.
        last: Whether the methods run that belong to the last analysis only.
        training: Reads those of training images; None: nothing does.
    """

    head: str | None = None
    problem: str | None = None
    last: bool = False
    training: TrainingReader | None = None

    def methods(
        self, methods: Sequence[tuple[Method, FittableMethod]], loader: int
    ) -> list[tuple[Method, FittableMethod]]:
        """Return the methods that run in this analysis of a loader."""
        last = self.last and loader == 0
        return [(method, fit) for method, fit in methods if last or not method.last_only]

    def missing(self, methods: Sequence[tuple[Method, FittableMethod]], values: Collection[str]) -> list[str]:
        """Return a sentence for each method on penultimate features that has none, given those that have values."""
        if self.problem is None:
            return []
        return [
            f"No {method.title or method.name}: {self.problem}"
            for method, _ in methods
            if method.source == "penultimate" and method.name not in values
        ]


def model_fingerprint(module: nn.Module, head: str) -> str:
    """Return the fingerprint of the penultimate features of a model, for its weights of now.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> before = model_fingerprint(model, "1")
    >>> _ = nn.init.zeros_(model[1].weight)  # the head does not count
    >>> model_fingerprint(model, "1") == before
    True
    """
    return fingerprint(module, without=head, kind=type(module).__qualname__, head=head)


def with_model(result: AnalysisResult, trainer: Trainer, head: str | None) -> AnalysisResult:
    """Return the result with the name of the head, and the fingerprint of its features, in the sparse section."""
    section = result.report.methods.get(SPARSE)
    if section is None or head is None:
        return result
    found = {"head": head, "fingerprint": model_fingerprint(trainer.lightning_module, head)}
    return _with_section(result, section | found)


def with_names(result: AnalysisResult, path: Path) -> AnalysisResult:
    """Return the result with the names that people gave to features of the model, in the sparse section.

    Args:
        result: The analysis.
        path: The file with names.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    section = result.report.methods.get(SPARSE, {})
    if "fingerprint" not in section:
        return result
    names = FeatureNames.load(path, encoder=section["fingerprint"])
    entries = [
        {"feature": feature, "name": one.name, "tag": one.tag, "action": one.action}
        for feature, one in sorted(names.entries.items())
        if one.name or one.tag or one.action
    ]
    return _with_section(result, section | {"names": entries})


def names_file(feature_names: Path | None, folder: Path) -> Path:
    """Return the file with names of features: the user's own, else that of the run."""
    return feature_names or folder / FEATURES_FILE


def with_late(result: AnalysisResult, late: AnalysisResult) -> AnalysisResult:
    """Return a result with the sections, aggregates and notes of methods that were fitted later."""
    report, added = result.report, late.report
    result = result.with_report(
        methods=report.methods | added.methods,
        summary=report.summary | {key: value for key, value in added.summary.items() if key not in report.summary},
        timings=report.timings | {key: value for key, value in added.timings.items() if key not in report.timings},
        notes=(*report.notes, *(note for note in added.notes if note not in report.notes)),
    )
    return replace(result, fitted={**result.fitted, **late.fitted})


def _with_section(result: AnalysisResult, section: dict[str, Any]) -> AnalysisResult:
    return result.with_report(methods=result.report.methods | {SPARSE: section})
