"""The cross-validation criterion: the score that selects C and measures the strength of a failure mode.

Everything that depends on the choice of the score stands here. To change the criterion, change :data:`CRITERION`: the
SVM fits select by it, and reports word its chance level from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lightning_failures.core.types import BoolArray, FloatArray


@dataclass(frozen=True)
class Criterion:
    """A score in [0, 1] of out-of-fold decision values; higher is better.

    Attributes:
        name: What people call the score.
        chance_level: Expected score of values that are independent of correctness.
        score: (..., n) decision values and (n,) correct -> (...,) scores.
        stderr: (n,) out-of-fold decision values and (n,) correct -> the standard error of the score.
    """

    name: str
    chance_level: float
    score: Callable[[FloatArray, BoolArray], FloatArray]
    stderr: Callable[[FloatArray, BoolArray], float]


def balanced_accuracy(values: FloatArray, correct: BoolArray) -> FloatArray:
    """Return the mean of the recall of successes (value >= 0) and the recall of failures (value < 0).

    Args:
        values: (..., n) decision values.
        correct: (n,) bool, with at least one success and one failure.

    Returns:
        (...,) in [0, 1].

    >>> float(balanced_accuracy(np.array([1.0, -2.0, 3.0, -4.0]), np.array([True, False, True, False])))
    1.0
    """
    predicted_success = values >= 0
    recall_of_successes = predicted_success[..., correct].mean(axis=-1)
    recall_of_failures = (~predicted_success[..., ~correct]).mean(axis=-1)
    return np.asarray((recall_of_successes + recall_of_failures) / 2)


def balanced_accuracy_stderr(values: FloatArray, correct: BoolArray) -> float:
    """Return the binomial standard error of the balanced accuracy of out-of-fold decision values.

    Each recall is shrunk by one hit and one miss, so that a perfect score on few examples has an error above zero.
    """
    variance = 0.0
    for hits in (values[correct] >= 0, values[~correct] < 0):
        recall = (hits.sum() + 1) / (len(hits) + 2)
        variance += recall * (1 - recall) / len(hits)
    return 0.5 * float(np.sqrt(variance))


CRITERION = Criterion("balanced accuracy", 0.5, balanced_accuracy, balanced_accuracy_stderr)
"""The criterion of every failure direction."""
