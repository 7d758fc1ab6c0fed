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
    randomised_verdict,
)
from lightning_failures.steering.checkpoint import RandomizedControlState


class RandomizedControl:
    """Half of the classes with a pattern are treated, by lot, when an intervention begins; the others tell the effect.

    Args:
        seed: Of the lot.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.reset()

    def reset(self) -> None:
        """Begin a new run."""
        self._treated: dict[int, bool] | None = None
        self._before: list[float] = []

    def begin(self, names: Sequence[str], patterns: Sequence[bool], grades: Grades, flagged: Tensor | None) -> None:
        """Draw, once, among the classes with a pattern; with fewer than it takes, all are treated."""
        classes = [k for k, pattern in enumerate(patterns) if pattern]
        if self._treated is not None or flagged is None:
            return
        if len(classes) < MIN_CLASSES:
            self._treated = dict.fromkeys(classes, True)
            return
        treated = assign_classes([f"{k} {names[k]}" for k in classes], seed=self._seed)
        self._treated = dict(zip(classes, treated.tolist(), strict=True))
        self._before = _accuracy(grades, flagged)[classes].tolist()

    def leaves_alone(self, k: int) -> bool:
        """Whether class k is one of those that tell what would have been without."""
        return self._treated is not None and self._treated.get(k) is False

    def judge(self, grades: Grades, flagged: Tensor) -> Verdict:
        """What the difference between treated classes and the others says so far."""
        if self._treated is None or not self._before:
            count = 0 if self._treated is None else len(self._treated)
            return not_measured(f"{count} classes had a pattern when it began, a lottery takes {MIN_CLASSES}")
        classes = list(self._treated)
        after = _accuracy(grades, flagged)[classes]
        return randomised_verdict(self._before, after, list(self._treated.values()), seed=self._seed)

    def to_dict(self) -> dict[str, Any]:
        """The state in a checkpoint."""
        return {"treated": self._treated, "before": self._before}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where the checkpoint was written.

        Raises:
            DataError: It is damaged.
        """
        saved = from_jsonable(RandomizedControlState, state)
        self._treated = None if saved.treated is None else {int(key): value for key, value in saved.treated.items()}
        self._before = list(saved.before)


def _accuracy(grades: Grades, flagged: Tensor) -> NDArray[np.float64]:
    """Of each class, over its examples in the slice: (K,), NaN where it has none."""
    mine = np.isin(as_array(grades.ids), as_array(flagged))
    labels, correct = as_array(grades.labels)[mine], as_array(grades.correct)[mine]
    sizes = np.bincount(labels, minlength=len(grades.class_names))
    right = np.bincount(labels, weights=correct, minlength=len(sizes))
    shares: NDArray[np.float64] = np.divide(right, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)
    return shares
