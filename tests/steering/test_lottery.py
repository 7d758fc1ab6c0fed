"""Randomized control: the assignment of classes, its verdict, its state."""

from __future__ import annotations

import torch

from lightning_failures.data.grades import Grades
from lightning_failures.interventions.verdicts import MIN_CLASSES
from lightning_failures.steering.lottery import RandomizedControl

CLASSES = 24
NAMES = [f"class {k}" for k in range(CLASSES)]
FLAGGED = torch.arange(0, CLASSES * 40, 2)


def graded(share_right) -> Grades:
    """Forty examples a class, the first of which are right."""
    ids = torch.arange(CLASSES * 40)
    labels = ids // 40
    right = ids % 40 < 40 * torch.as_tensor(share_right)[labels]
    return Grades(ids, labels, torch.where(right, labels, (labels + 1) % CLASSES), torch.ones(len(ids)), tuple(NAMES))


def test_control__half_of_the_classes_once():
    control = RandomizedControl(3)
    control.begin(NAMES, [True] * CLASSES, graded([0.5] * CLASSES), None)
    assert not any(control.is_control(k) for k in range(CLASSES))
    control.begin(NAMES, [True] * CLASSES, graded([0.5] * CLASSES), FLAGGED)
    untreated = [k for k in range(CLASSES) if control.is_control(k)]
    assert len(untreated) == CLASSES // 2
    control.begin(NAMES, [True] * CLASSES, graded([0.9] * CLASSES), FLAGGED)
    assert [k for k in range(CLASSES) if control.is_control(k)] == untreated


def test_verdict__of_treated_classes_that_improve():
    control = RandomizedControl(3)
    control.begin(NAMES, [True] * CLASSES, graded([0.5] * CLASSES), FLAGGED)
    after = graded([0.5 if control.is_control(k) else 0.9 for k in range(CLASSES)])
    verdict = control.judge(after, FLAGGED)
    assert verdict.outcome == "helped"
    again = RandomizedControl(0)
    again.load(control.to_dict() | {"treated": {str(k): v for k, v in control.to_dict()["treated"].items()}})
    assert again.judge(after, FLAGGED).difference == verdict.difference


def test_verdict__too_few_classes_are_all_treated():
    control = RandomizedControl(3)
    few = [k < MIN_CLASSES - 1 for k in range(CLASSES)]
    control.begin(NAMES, few, graded([0.5] * CLASSES), FLAGGED)
    assert not any(control.is_control(k) for k in range(CLASSES))
    assert f"{MIN_CLASSES - 1} classes had a pattern" in control.judge(graded([0.5] * CLASSES), FLAGGED).sentence


def looked_at(share_right, rows=slice(None), shift: int = 0) -> Grades:
    """The grades of some of the examples, with digests, under ids that have moved."""
    grades = graded(share_right)
    columns = (getattr(grades, name)[rows] for name in ("ids", "labels", "predictions", "confidence"))
    ids, *rest = columns
    return Grades(ids + shift, *rest, grades.class_names, digests=ids + 10**6)


def test_verdict__compares_the_same_images_whatever_their_ids():
    """Half of the examples of each class, those that are right, are gone from the second validation."""
    control = RandomizedControl(3)
    control.begin(NAMES, [True] * CLASSES, looked_at([0.5] * CLASSES), FLAGGED)
    rows = (torch.arange(CLASSES * 40) % 40 >= 10) & (torch.arange(CLASSES * 40) % 40 < 38)
    verdict = control.judge(looked_at([0.5] * CLASSES, rows, shift=1), FLAGGED)
    assert (verdict.outcome, verdict.difference, verdict.treated) == ("no evidence", 0.0, 0.0)
    again = RandomizedControl(0)
    again.load(control.to_dict() | {"treated": {str(k): v for k, v in control.to_dict()["treated"].items()}})
    assert again.judge(looked_at([0.5] * CLASSES, rows, shift=1), FLAGGED).difference == 0.0
    other = looked_at([0.9] * CLASSES)
    nothing_shared = Grades(
        *(getattr(other, name) for name in ("ids", "labels", "predictions", "confidence", "class_names")),
        digests=other.ids,
    )
    assert control.judge(nothing_shared, FLAGGED).outcome == "not measured"
