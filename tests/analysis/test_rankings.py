"""Baselines as a method: cross-fitted rankings in the report, the same however many processes share the fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_failures import Grades, analyse
from lightning_failures.analysis import BaselinesFit
from lightning_failures.baselines.ranking import FINDERS
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
    assert set(section["rankings"]) == set(FINDERS)
    for classes in section["rankings"].values():
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
    assert report.methods["baselines"]["rankings"] == {"domino": {}, "clusters": {}}


def test_rankings__unknown_baseline():
    with pytest.raises(ConfigurationError, match="Did you mean domino"):
        BaselinesFit(("dominos",))
