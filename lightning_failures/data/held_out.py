"""The parts of a validation set that no method was fitted on."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_failures.data.grades import Grades


@dataclass(frozen=True)
class HeldOutSplit:
    """The n graded rows of one held-out part.

    Attributes:
        grades: Grades of these examples only.
        values: (n,) float32, decision values from the directions of the discovery part; NaN without a direction.
    """

    grades: Grades
    values: Tensor


@dataclass(frozen=True)
class HeldOutParts:
    """The parts of a validation set on which interventions are measured.

    Attributes:
        report: Examples that the headline numbers are computed on.
        decision: Examples that rollbacks and monitored keys are computed on; may be empty.
        spent: Examples that the last layer may be fitted to; None if no part is spent so.
    """

    report: HeldOutSplit
    decision: HeldOutSplit
    spent: HeldOutSplit | None = None
