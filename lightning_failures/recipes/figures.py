"""What the papers measure, of one trained network and its analysis."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.baselines.ranking import hardest_rows
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.grading import best_f1_threshold
from lightning_failures.encoders.base import TextEncoder
from lightning_failures.recipes.base import Setting

TOPS = (10, 50, 100)
NEAREST = 0.2
"""Share of the images of a class that count as nearest to a caption."""

CAPTIONED = 20
"""Number of classes whose captions are listed."""


@dataclass(frozen=True)
class Judged:
    """The test examples of one classification problem; a multilabel task has one for each condition.

    Attributes:
        labels: (n,) int, class indices of the failure directions.
        confidence: (n,) predicted probabilities of the labels.
        failed: (n,) bool.
        values: (n,) decision values; NaN in classes without a direction.
    """

    labels: IntArray
    confidence: FloatArray
    failed: BoolArray
    values: FloatArray


def judge(
    result: AnalysisResult, labels: Tensor, probabilities: FloatArray, embeddings: Tensor, *, multilabel: bool
) -> list[Judged]:
    """Return the verdicts and the decision values of test examples.

    Args:
        result: The analysis of validation. In a multilabel task it also gives the thresholds of best F1.
        labels: (n,) int, or (n, K) of 0 and 1 in a multilabel task.
        probabilities: (n, K).
        embeddings: (n, D).
        multilabel: Whether it is such a task.
    """
    assert result.directions is not None
    if not multilabel:
        y = labels.numpy().astype(np.int64)
        values = result.directions.decision_values(embeddings, labels).numpy()
        return [Judged(y, probabilities[np.arange(len(y)), y], probabilities.argmax(axis=1) != y, values)]
    judged = []
    for k, threshold in enumerate(_thresholds(result, probabilities.shape[1])):
        present, positive = labels[:, k].long(), probabilities[:, k]
        values = result.directions.decision_values(embeddings, 2 * k + present).numpy()
        y = present.numpy().astype(np.int64)
        judged.append(
            Judged(2 * k + y, np.where(y == 1, positive, 1 - positive), (positive >= threshold) != (y == 1), values)
        )
    return judged


def _thresholds(result: AnalysisResult, conditions: int) -> list[float]:
    """Return the threshold of best F1 of each condition in validation, as the callback uses it."""
    table = result.table
    assert table is not None
    assert table.confidence is not None
    present = table.labels % 2
    positive = torch.where(present == 1, table.confidence, 1 - table.confidence)
    of_condition = [table.labels // 2 == k for k in range(conditions)]
    return [best_f1_threshold(positive[rows], present[rows]) if rows.any() else 0.5 for rows in of_condition]


def test_figures(
    values: FloatArray, confidence: FloatArray, labels: IntArray, failed: BoolArray, hard: BoolArray | None
) -> dict[str, float]:
    """Return the figures of the test set.

    Args:
        values: (n,) decision values; NaN in classes without a direction, which do not count.
        confidence: (n,) predicted probabilities of the labels.
        labels: (n,) int.
        failed: (n,) bool.
        hard: (n,) bool, the group that training under-represents, or None.

    >>> values, labels = np.array([-1.0, -0.5, 0.5, 1.0]), np.zeros(4, int)
    >>> failed = hard = np.array([True, False, False, False])
    >>> found = test_figures(values, 1 - failed, labels, failed, hard)
    >>> found["error rate of flagged"], found["hard among flagged"], found["hard in all"]
    (0.5, 0.5, 0.25)
    """
    known = np.isfinite(values)
    flagged, others = known & (values < 0), known & (values >= 0)
    figures = {}
    if flagged.any() and others.any():
        figures["error rate of flagged"] = float(failed[flagged].mean())
        figures["error rate of others"] = float(failed[others].mean())
    if hard is None or not known.any():
        return figures
    figures["hard in all"] = float(hard[known].mean())
    for name, rows in (("flagged", flagged), ("failures", known & failed)):
        if rows.any():
            figures[f"hard among {name}"] = float(hard[rows].mean())
    return figures | top_figures({"": -values, " by confidence": -confidence}, labels, hard, known)


def top_figures(
    rankings: Mapping[str, FloatArray], labels: IntArray, hard: BoolArray, known: BoolArray | None = None
) -> dict[str, float]:
    """Return the share of the hard group among the hardest examples of a class, the mean over classes.

    Args:
        rankings: Hardness (n,) by the end of the figure's name; the larger, the harder.
        labels: (n,) int.
        hard: (n,) bool.
        known: (n,) bool, the examples that count; None: those that all rank.

    >>> hardness, labels = {" by loss": np.array([3.0, 2.0, 1.0])}, np.zeros(3, int)
    >>> top_figures(hardness, labels, np.array([True, False, False]))["hard in top 10 by loss"]
    0.3333333333333333
    """
    if known is None:
        known = np.logical_and.reduce([np.isfinite(values) for values in rankings.values()])
    members = _members(labels, known)
    return {
        f"hard in top {top}{name}": float(np.mean([hard[hardest_rows(values, rows, top)].mean() for rows in members]))
        for top in TOPS
        for name, values in rankings.items()
        if members
    }


def focus_figures(judged: Judged, names: tuple[str, str], hard: BoolArray | None) -> dict[str, float]:
    """Return the figures of both sides of one condition: without it, and with it."""
    figures: dict[str, float] = {}
    for side, name in enumerate(names):
        rows = judged.labels % 2 == side
        found = test_figures(
            judged.values[rows], judged.confidence[rows], judged.labels[rows], judged.failed[rows],
            None if hard is None else hard[rows],
        )  # fmt: skip
        figures |= {f"{key}: {name}": value for key, value in found.items()}
    return figures


def diagnosis_figures(result: AnalysisResult) -> dict[str, float]:
    """Return the share of each kind of failure among the classes that were diagnosed."""
    kinds = [entry.diagnosis.kind for entry in result.report.classes if entry.diagnosis is not None]
    return {f"diagnosed {kind}": kinds.count(kind) / len(kinds) for kind in dict.fromkeys(kinds)}


def nearest_figures(
    result: AnalysisResult, encoder: TextEncoder, embeddings: Tensor, judged: Sequence[Judged]
) -> dict[str, float]:
    """Return the error rates of the fifths of a class nearest to its hardest and its easiest caption.

    They are means over classes.

    Args:
        result: The analysis with the captions.
        encoder: Embeds them.
        embeddings: (n, D) of the test examples, unit vectors.
        judged: Their verdicts.
    """
    rates: dict[str, list[float]] = {"hardest": [], "easiest": []}
    for one in judged:
        for label in np.unique(one.labels):
            entry = result.report.classes[label]
            if not (entry.hardest_captions and entry.easiest_captions):
                continue
            rows = np.flatnonzero(one.labels == label)
            texts = encoder.encode_texts([entry.hardest_captions[0], entry.easiest_captions[0]])
            near = (embeddings[torch.from_numpy(rows)] @ texts.T.to(embeddings.dtype)).numpy()
            count = max(round(NEAREST * len(rows)), 1)
            for column, found in enumerate(rates.values()):
                found.append(float(one.failed[rows[np.argsort(-near[:, column], kind="stable")[:count]]].mean()))
    return {f"error rate nearest to the {end} caption": float(np.mean(some)) for end, some in rates.items() if some}


def caption_figures(result: AnalysisResult, setting: Setting) -> dict[str, float]:
    """Return in which share of the classes the hardest caption, or one of the two hardest, names the hard group."""
    words = setting.hard_words or {}
    captioned = [
        (entry, words[k]) for k, entry in enumerate(result.report.classes) if entry.hardest_captions and k in words
    ]
    if not captioned:
        return {}
    ranks = [_names(entry.hardest_captions, some) for entry, some in captioned]
    return {
        "hard caption first": float(np.mean([1 in found for found in ranks])),
        "hard caption in two": float(np.mean([bool({1, 2} & found) for found in ranks])),
    }


def caption_texts(result: AnalysisResult) -> dict[str, str]:
    """Return the hardest and the easiest caption of the classes with the highest CV scores."""
    captioned = [entry for entry in result.report.classes if entry.hardest_captions and entry.easiest_captions]
    texts = {}
    for entry in sorted(captioned, key=lambda one: -(one.cv_score or 0.0))[:CAPTIONED]:
        texts[f"{entry.name}: hardest"] = entry.hardest_captions[0]
        texts[f"{entry.name}: easiest"] = entry.easiest_captions[0]
    return texts


def _names(captions: Sequence[str], words: Sequence[str]) -> set[int]:
    """Return the ranks, from 1, of the captions that hold one of the words."""
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, words)) + r")\b")
    return {rank for rank, caption in enumerate(captions, 1) if pattern.search(caption)}


def _members(labels: IntArray, known: BoolArray) -> list[IntArray]:
    return [np.flatnonzero(known & (labels == label)) for label in np.unique(labels[known])]
