"""Verdict while a training runs: half of the classes, chosen at random, are left untreated as a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.serialization import from_jsonable
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.joining import ExampleKeys, join_examples
from lightning_failures.interventions.validation_split import take_grades
from lightning_failures.interventions.verdicts import (
    MIN_CLASSES,
    Verdict,
    assign_classes,
    not_measured,
    randomized_verdict,
)
from lightning_failures.steering.checkpoint import RandomizedControlState


class RandomizedControl:
    """Assigns half of the classes with a pattern to treatment when an intervention begins; the others are the control.

    Args:
        seed: Seed of the assignment.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Begin a new run."""
        self._treated: dict[int, bool] | None = None  # class -> whether it is treated
        self._before: list[float] = []  # accuracy of these classes on the slice when the intervention began
        self._members: dict[str, Tensor] | None = None  # ids, labels, correct and digests of the slice then

    def begin(self, names: Sequence[str], patterns: Sequence[bool], grades: Grades, flagged: Tensor | None) -> None:
        """Assign the classes with a pattern, once; if there are too few of them, all are treated.

        Args:
            names: K class names.
            patterns: K bool, whether a class has a pattern.
            grades: Grades of the report part.
            flagged: (m,) int64, ids of the frozen slice in these grades; None: it is too early.
        """
        if self._treated is not None or flagged is None:
            return
        classes = [k for k, pattern in enumerate(patterns) if pattern]
        if len(classes) < MIN_CLASSES:
            self._treated = dict.fromkeys(classes, True)
            return
        treated = assign_classes([f"{k} {names[k]}" for k in classes], seed=self._seed)
        self._treated = dict(zip(classes, treated.tolist(), strict=True))
        self._before = _slice_accuracy(grades, flagged)[classes].tolist()
        mine = take_grades(grades, torch.isin(grades.ids, flagged))
        self._members = {"ids": mine.ids, "labels": mine.labels, "correct": mine.correct}
        if mine.digests is not None:
            self._members["digests"] = mine.digests

    def is_control(self, k: int) -> bool:
        """Return whether class k is left untreated as a control."""
        return self._treated is not None and self._treated.get(k) is False

    def judge(self, grades: Grades, flagged: Tensor) -> Verdict:
        """Return the verdict so far: the difference in differences of treated and control classes.

        The accuracies before and after are of the examples that both validations graded.

        Args:
            grades: Grades of the report part now.
            flagged: (m,) int64, ids of the frozen slice.
        """
        if self._treated is None or not self._before:
            count = 0 if self._treated is None else len(self._treated)
            return not_measured(
                f"{count} classes had a pattern when the intervention began, and a lottery takes {MIN_CLASSES}"
            )
        classes = list(self._treated)
        if self._members is None:  # resumed from a checkpoint of a former version
            before, after = np.array(self._before), _slice_accuracy(grades, flagged)[classes]
        else:
            before, after = (accuracy[classes] for accuracy in _before_and_after(self._members, grades))
        return randomized_verdict(before, after, list(self._treated.values()), seed=self._seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        members = {} if self._members is None else {"members": self._members}
        return {"treated": self._treated, "before": self._before} | members

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            DataError: The state is damaged.
        """
        saved = from_jsonable(RandomizedControlState, state)
        self._treated = None if saved.treated is None else {int(key): value for key, value in saved.treated.items()}
        self._before, self._members = list(saved.before), saved.members


def _slice_accuracy(grades: Grades, flagged: Tensor) -> NDArray[np.float64]:
    """Return the accuracy (K,) of each class over its examples in a slice, NaN for a class without any."""
    in_slice = np.isin(as_array(grades.ids), as_array(flagged))
    labels, correct = as_array(grades.labels)[in_slice], as_array(grades.correct)[in_slice]
    return _accuracies(labels, correct, len(grades.class_names))


def _before_and_after(members: Mapping[str, Tensor], grades: Grades) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the accuracies (K,) of each class then and now, over the examples of the slice that are in ``grades``."""
    digests = members.get("digests")
    keys = ExampleKeys(as_array(members["ids"]), None if digests is None else as_array(digests))
    then, now = join_examples(keys, ExampleKeys.of(grades))
    labels, was = as_array(members["labels"])[then], as_array(members["correct"])[then]
    classes = max(len(grades.class_names), int(labels.max(initial=0)) + 1)
    return _accuracies(labels, was, classes), _accuracies(labels, as_array(grades.correct)[now], classes)


def _accuracies(labels: IntArray, correct: BoolArray, classes: int) -> NDArray[np.float64]:
    """Return the accuracy (K,) of each class, NaN for a class without examples."""
    sizes = np.bincount(labels, minlength=classes)
    right = np.bincount(labels, weights=correct, minlength=len(sizes))
    shares: NDArray[np.float64] = np.divide(right, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    return shares
