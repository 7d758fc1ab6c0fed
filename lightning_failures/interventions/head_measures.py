"""What new last layers gain on examples that they were not fitted to, and whether they do harm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.interventions.base import HeadExamples, NewHead
from lightning_failures.interventions.head import MIN_GROUP, group_codes, head_logits
from lightning_failures.interventions.verdicts import Verdict, not_measured, paired_verdict, should_roll_back


def measure_heads(
    report: HeadExamples | None,
    arms: Mapping[str, Sequence[NewHead]],
    *,
    tested: str,
    against: Sequence[str],
    without: str,
    seed: int,
    on_all: bool = False,
) -> tuple[dict[str, Any], Verdict]:
    """Return the accuracies of all arms on the report part, and the verdict on one of them.

    Args:
        report: The report part; None if its examples cannot be read again.
        arms: Last layers by the name of their arm.
        tested: The arm that the verdict is on, of one layer.
        against: The arms that it is compared with.
        without: What their layers lack, for the sentence of the verdict.
        seed: Seed of the bootstrap.
        on_all: Whether the verdict is on the whole part where its frozen slice has fewer than 10 examples.
    """
    if report is None or not len(report.labels):
        return {}, not_measured("the examples of the report part cannot be read again")
    correct = {arm: np.stack([correct_with(head, report) for head in heads]) for arm, heads in arms.items()}
    in_slice = report.in_slice
    measured: dict[str, Any] = {"examples": len(report.labels), "slice": int(in_slice.sum())}
    for arm, rows in correct.items():
        figures = [_figures(row, report.labels, in_slice) for row in rows]
        measured[arm] = {key: _mean([one[key] for one in figures]) for key in figures[0]}

    rows = in_slice
    what = "flagged examples of the report part"
    if on_all and in_slice.sum() < MIN_GROUP:
        rows, what = np.ones_like(in_slice), "examples of the report part"
    others = np.concatenate([correct[arm] for arm in against])[:, rows]
    verdict = paired_verdict(
        np.repeat(correct[tested][:, rows], len(others), axis=0),
        others,
        groups=None if report.groups is None else report.groups[rows],
        seed=seed,
        what=what,
    )
    if verdict.interval is None:
        return measured, verdict
    low, high = verdict.interval
    sentence = (
        f"{verdict.outcome.capitalize()}: of {verdict.examples} {what}"
        f" {verdict.treated:.3f} are right with the new last layer, {verdict.control:.3f} with layers refitted without"
        f" {without} (difference {verdict.difference:+.3f}, {verdict.level:.0%} interval {low:+.3f} to"
        f" {high:+.3f})."
    )
    return measured, replace(verdict, sentence=sentence, pairs=0)


def harm(decision: HeadExamples | None, before: NewHead, new: NewHead, *, seed: int) -> Verdict | None:
    """Return the verdict on the decision part if accuracy falls there, else None."""
    if decision is None or not len(decision.labels):
        return None
    verdict = should_roll_back(
        correct_with(before, decision), correct_with(new, decision), groups=decision.groups, seed=seed
    )
    return verdict if verdict.outcome == "hurt" else None


def correct_with(head: NewHead, examples: HeadExamples) -> BoolArray:
    """Return whether a head is right on each example, (n,) bool."""
    logits: FloatArray = head_logits(head.weight, head.bias, examples.features)
    return np.asarray(logits.argmax(axis=1) == examples.labels)


def _figures(correct: BoolArray, labels: IntArray, in_slice: BoolArray) -> dict[str, float | None]:
    """Return accuracy, accuracy on the slice, and accuracy in the worst group (class x slice) of enough examples."""
    code = group_codes(labels, in_slice)
    names, sizes = np.unique(code, return_counts=True)
    groups = [float(correct[code == name].mean()) for name in names[sizes >= MIN_GROUP]]
    return {
        "accuracy": float(correct.mean()),
        "slice_accuracy": float(correct[in_slice].mean()) if in_slice.any() else None,
        "worst_group": min(groups, default=None),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
