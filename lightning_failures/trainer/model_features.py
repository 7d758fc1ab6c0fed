"""What methods on the penultimate features of the live model need beside those of the evaluated examples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer
from torch import nn

from lightning_failures.analysis.method import FittableMethod, TrainingReader
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.analysis.sparse_layers import SparseFit, SpuriousFeatures
from lightning_failures.encoders.frozen import fingerprint
from lightning_failures.errors import ConfigurationError
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
        spurious: Those that people call spurious; None if there are none.
    """

    head: str | None = None
    problem: str | None = None
    last: bool = False
    training: TrainingReader | None = None
    spurious: SpuriousFeatures | None = None

    def methods(
        self, methods: Sequence[tuple[Method, FittableMethod]], loader: int
    ) -> list[tuple[Method, FittableMethod]]:
        """Return the methods that run in this analysis of a loader."""
        last = self.last and loader == 0
        return self._with_spurious([(method, fit) for method, fit in methods if last or not method.last_only])

    def last_methods(self, methods: Sequence[tuple[Method, FittableMethod]]) -> list[tuple[Method, FittableMethod]]:
        """Return the methods that run in the last analysis only."""
        return self._with_spurious([(method, fit) for method, fit in methods if method.last_only])

    def _with_spurious(self, methods: list[tuple[Method, FittableMethod]]) -> list[tuple[Method, FittableMethod]]:
        """Give the spurious features to the fit of sparse layers."""
        if self.spurious is None:
            return methods
        return [
            (method, replace(fit, spurious=self.spurious) if isinstance(fit, SparseFit) else fit)
            for method, fit in methods
        ]

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


def spurious_features(module: nn.Module, head: str | None, path: Path) -> SpuriousFeatures | None:
    """Return the penultimate features that people tagged spurious for the weights of now; None without any.

    Args:
        module: The model.
        head: Name of its last layer; None: unknown.
        path: The file with names and tags; one that cannot be read holds none, which is reported elsewhere.
    """
    if head is None or not path.is_file():
        return None
    try:
        names = FeatureNames.load(path, encoder=model_fingerprint(module, head))
    except ConfigurationError:
        return None
    tagged = tuple(sorted(feature for feature, one in names.entries.items() if one.tag == "spurious"))
    if not tagged:
        return None
    layer = module.get_submodule(head)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        return SpuriousFeatures(tagged)
    weight, bias = (values.detach().cpu().double().numpy() for values in (layer.weight, layer.bias))
    if len(bias) == 1:  # one logit: the other class has none
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    return SpuriousFeatures(tagged, weight, bias)


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
