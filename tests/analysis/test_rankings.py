"""Baselines as a method: cross-fitted rankings in the report, the same however many processes share the fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_failures import Grades, analyse
from lightning_failures.analysis import BaselinesFit
from lightning_failures.baselines.ranking import FINDERS
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.errors import ConfigurationError


def planted(classes: int = 3, n: int = 120):
    """Grades and embeddings; a quarter of each class lies apart, and fails."""
    rng = np.random.default_rng(0)
    labels = np.arange(classes * n) % classes
    hard = rng.random(classes * n) < 0.25
    x = rng.normal(size=(classes * n, 8)) + 4 * hard[:, None] * (np.arange(8) == labels[:, None])
    predictions = np.where(hard, (labels + 1) % classes, labels)
    grades = Grades(
        torch.arange(len(labels)), torch.from_numpy(labels), torch.from_numpy(predictions), torch.ones(len(labels)),
        tuple(f"class {k}" for k in range(classes)),
    )  # fmt: skip
    return grades, x, hard


def test_rankings__of_each_class_and_baseline_are_in_the_report():
    grades, x, hard = planted()
    section = analyse(grades, x, methods=[(BaselinesFit(top=15), x)]).report.methods["baselines"]
    assert list(section["rankings"]) == [*FINDERS, "confidence"]
    assert section["captions"] == {}
    assert "attributes" not in section
    for classes in (section["rankings"][name] for name in FINDERS):
        assert list(classes) == list(grades.class_names)
        for k, ids in enumerate(classes.values()):
            assert len(set(ids)) == 15
            assert (grades.labels[ids] == k).all()
            assert hard[ids].mean() > 0.7
    assert analyse(grades, x).report.methods == {}


def test_rankings__without_time_say_so():
    grades, x, _ = planted()
    report = analyse(grades, x, methods=[(BaselinesFit(), x)], time_budget=1e-9).report
    assert any("Baseline domino" in note for note in report.notes)
    assert report.methods["baselines"]["rankings"] == {"domino": {}, "clusters": {}, "confidence": {}}


def test_rankings__by_confidence_and_margin_with_captions_of_what_they_rank_first():
    grades, x, hard = planted()
    rng = np.random.default_rng(1)
    confidence = torch.from_numpy(np.where(hard, 0.1, 0.9) + rng.uniform(-0.1, 0.1, len(hard))).float()
    grades = replace(grades, confidence=confidence, margin=-confidence)
    vectors = torch.eye(8)

    def captions(k):
        return ClassCaptions(("axis 0", "axis 1", "axis 2", "axis 7"), vectors[[0, 1, 2, 7]], vectors[3])

    method = (BaselinesFit(("domino",), top=10), x)
    metadata = {"weather": np.where(hard, "rain", "sun")}
    report = analyse(grades, x, captions=captions, methods=[method], metadata=metadata).report
    section = report.methods["baselines"]
    stored = section["attributes"]
    assert stored["ids"] == list(range(360))
    weather = stored["by_name"]["weather"]
    assert [weather["values"][code] for code in weather["codes"]] == metadata["weather"].tolist()
    assert list(section["rankings"]) == ["domino", "confidence", "margin"]
    for name in ("domino", "confidence"):
        assert section["captions"][name] == {f"class {k}": f"axis {k}" for k in range(3)}
    for k in range(3):
        of_class = np.flatnonzero(grades.labels == k)
        by_confidence = of_class[np.argsort(confidence[of_class].numpy(), kind="stable")]
        assert section["rankings"]["confidence"][f"class {k}"] == by_confidence[:10].tolist()
        assert section["rankings"]["margin"][f"class {k}"] == by_confidence[::-1][:10].tolist()


def test_rankings__unknown_baseline():
    with pytest.raises(ConfigurationError, match="Did you mean domino"):
        BaselinesFit(("dominos",))
