"""Verdict while a training runs: half of the classes, chosen at random, are left untreated as a control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_failures.core.arrays import as_array
from lightning_failures.core.serialization import from_jsonable
from lightning_failures.data.grades import Grades
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

    def begin(self, names: Sequence[str], patterns: Sequence[bool], grades: Grades, flagged: Tensor | None) -> None:
        """Assign the classes with a pattern, once; if there are too few of them, all are treated.

        Args:
            names: K class names.
            patterns: K bool, whether a class has a pattern.
            grades: Grades of the report part.
            flagged: (m,) int64, ids of the frozen slice; None: it is too early.
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

    def is_control(self, k: int) -> bool:
        """Return whether class k is left untreated as a control."""
        return self._treated is not None and self._treated.get(k) is False

    def judge(self, grades: Grades, flagged: Tensor) -> Verdict:
        """Return the verdict so far: the difference in differences of treated and control classes.

        Args:
            grades: Grades of the report part now.
            flagged: (m,) int64, ids of the frozen slice.
        """
        if self._treated is None or not self._before:
            count = 0 if self._treated is None else len(self._treated)
            return not_measured(
                f"{count} classes had a pattern when the intervention began, and a lottery takes {MIN_CLASSES}"
            )
        after = _slice_accuracy(grades, flagged)[list(self._treated)]
        return randomized_verdict(self._before, after, list(self._treated.values()), seed=self._seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"treated": self._treated, "before": self._before}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            DataError: The state is damaged.
        """
        saved = from_jsonable(RandomizedControlState, state)
        self._treated = None if saved.treated is None else {int(key): value for key, value in saved.treated.items()}
        self._before = list(saved.before)


def _slice_accuracy(grades: Grades, flagged: Tensor) -> NDArray[np.float64]:
    """Return the accuracy (K,) of each class over its examples in a slice, NaN for a class without any."""
    in_slice = np.isin(as_array(grades.ids), as_array(flagged))
    labels, correct = as_array(grades.labels)[in_slice], as_array(grades.correct)[in_slice]
    sizes = np.bincount(labels, minlength=len(grades.class_names))
    right = np.bincount(labels, weights=correct, minlength=len(sizes))
    shares: NDArray[np.float64] = np.divide(right, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    return shares
