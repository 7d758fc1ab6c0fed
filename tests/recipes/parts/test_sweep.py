"""The CV score rises with what is planted, and the table of levels and classes is written."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from lightning_failures.recipes.parts.sweep import ClassAtLevel, level_figures, sweep_levels


def test_levels__cv_score_rises_with_the_strength(trained):
    found = sweep_levels(trained)
    scores = [found.figures[f"CV score, strength {level}"] for level in ("0.5", "0.8", "0.98")]
    assert scores[0] < scores[2]
    assert found.figures["rank correlation of CV score and strength"] > 0
    (name,) = found.files.values()
    rows = list(csv.DictReader((trained.output / name).read_text().splitlines()))
    assert {row["level"] for row in rows} >= {"0.8", "0.98"}
    assert all(0 <= float(row["cv_score"]) <= 1 for row in rows)
    assert sweep_levels(replace(trained, setting=replace(trained.setting, sweep=None))).figures == {}


def test_figures__correlations_over_levels_and_over_classes():
    nan = float("nan")
    rows = [
        ClassAtLevel(0.1, "a", 0.5, 0.9, 0.1), ClassAtLevel(0.1, "b", 0.6, nan, nan),
        ClassAtLevel(0.5, "a", 0.7, 0.5, 0.4), ClassAtLevel(0.9, "a", 0.6, 0.2, 0.6),
    ]  # fmt: skip
    found = level_figures(rows, "degree")
    assert found["CV score, degree 0.1"] == pytest.approx(0.55)
    assert found["minority accuracy, degree 0.1"] == pytest.approx(0.9)
    assert found["rank correlation of CV score and degree"] == pytest.approx(0.5)
    assert found["rank correlation per class of CV score and minority error rate"] == pytest.approx(0.5)
    assert level_figures(rows[:1], "degree").keys() == {
        "CV score, degree 0.1", "minority accuracy, degree 0.1", "minority share of errors, degree 0.1"
    }  # fmt: skip
