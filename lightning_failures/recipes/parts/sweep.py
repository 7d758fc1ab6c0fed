"""The strength of the failure mode against the level of what is planted.

Jain et al., ICLR 2023: sections 3.1 (shortcut) and B.4 with Figures 25 to 27 (under-represented sub-class), where the
CV score of a class is compared with the level, with the accuracy on its minority, and with the share of its minority
among its errors. Networks of all levels are trained alike.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata  # type: ignore[import-untyped]

from lightning_failures.core.atomic import write_atomically
from lightning_failures.directions import fit_failure_directions
from lightning_failures.recipes.base import Found, Setting
from lightning_failures.recipes.training import Trained


class ClassAtLevel(NamedTuple):
    """One class of the network of one level; shares are NaN where the test set has no such examples."""

    level: float
    name: str
    cv_score: float
    minority_accuracy: float
    minority_share_of_errors: float


def sweep_levels(trained: Trained) -> Found:
    """Train a network at each level; returns CV scores by level, and their rank correlations."""
    sweep = trained.setting.sweep
    if sweep is None:
        return Found(notes=("The setting has one level only.",))
    rows: list[ClassAtLevel] = []
    for level in sweep.levels:
        rows += _at_level(trained, sweep.at(level), level)
    path = trained.output / f"levels-seed-{trained.seed}.csv"
    write_atomically(path, _table(rows).encode())
    return Found(level_figures(rows, sweep.name), files={f"levels of seed {trained.seed}": path.name})


def level_figures(rows: Sequence[ClassAtLevel], name: str) -> dict[str, float]:
    """Return means over classes by level, and rank correlations over levels, and over levels and classes.

    >>> rows = [ClassAtLevel(k, "a", 0.5 + k / 10, 0.9 - k / 10, k / 10) for k in (1, 2, 3)]
    >>> found = level_figures(rows, "degree")
    >>> found["CV score, degree 1"], found["rank correlation of CV score and degree"]
    (0.6, 1.0)
    >>> found["rank correlation per class of CV score and minority error rate"]
    1.0
    """
    figures: dict[str, float] = {}
    means: list[tuple[float, ...]] = []
    measures = {"CV score": "cv_score", "minority accuracy": "minority_accuracy",
                "minority share of errors": "minority_share_of_errors"}  # fmt: skip
    for level in sorted({row.level for row in rows}):
        of_level = [_mean([getattr(row, key) for row in rows if row.level == level]) for key in measures.values()]
        means.append((level, *of_level))
        figures |= {f"{text}, {name} {level:g}": value for text, value in zip(measures, of_level, strict=True)}
    single = [(row.level, row.cv_score, row.minority_accuracy, row.minority_share_of_errors) for row in rows]
    for kind, table in (("", np.array(means)), (" per class", np.array(single))):
        if not len(table):
            continue
        levels, scores, accuracy, share = table.T
        for text, other in {
            name: levels,
            "minority error rate": 1 - accuracy,
            "minority share of errors": share,
        }.items():
            figures[f"rank correlation{kind} of CV score and {text}"] = _rank_correlation(scores, other)
    return {key: value for key, value in figures.items() if np.isfinite(value)}


def _at_level(trained: Trained, setting: Setting, level: float) -> list[ClassAtLevel]:
    """Train at one level, and return its classes that have a direction."""
    model = trained.train(setting)
    validation, test = trained.answer(model, setting.validation), trained.answer(model, setting.test)
    directions = fit_failure_directions(
        trained.embed(setting.validation), validation.y, ~validation.failed, permutations=0, seed=trained.seed
    )
    hard = np.zeros(len(test.y), np.bool_) if setting.hard_in_test is None else setting.hard_in_test
    rows = []
    for k, score in zip(directions.classes.tolist(), directions.cv_score.tolist(), strict=True):
        members = test.y == k
        accuracy = _mean(1.0 - test.failed[members & hard])
        share = _mean(hard[members & test.failed])
        rows.append(ClassAtLevel(level, setting.class_names[k], score, accuracy, share))
    return rows


def _mean(values: object) -> float:
    finite = np.asarray(values, dtype=np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if len(finite) else float("nan")


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Return Spearman's correlation of two columns (n,); NaN with fewer than three rows or a constant column."""
    known = np.isfinite(first) & np.isfinite(second)
    ranks = [rankdata(column[known]) for column in (first, second)]
    if known.sum() < 3 or any(np.ptp(column) == 0 for column in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1].round(12))


def _table(rows: Sequence[ClassAtLevel]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(ClassAtLevel._fields)
    writer.writerows([[value if value == value else "" for value in row] for row in rows])
    return text.getvalue()
