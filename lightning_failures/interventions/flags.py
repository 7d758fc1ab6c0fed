"""Which training examples interventions act on: those that the direction of their class flags, without doubtful labels.

More weight makes a failure with a wrong label worse, so two rules leave labels to a person: suspected label errors, one
by one, and, where most failures of validation look like doubtful labels, every label that a probe does not support.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.report import MAX_REVIEW
from lightning_failures.errors import ConfigurationError
from lightning_failures.interventions.base import LEFT_OUT, UNTREATED, JudgedExamples, Round

FlagBy = Literal["directions", "early"]
"""What flags training examples; see :class:`~lightning_failures.interventions.Upweight`."""

DOUBTFUL_FACTOR = 2.0
"""Largest weight of a flagged example where most failures of validation look like doubtful labels: the paper's.

Larger ones cost points where nothing but wrong labels is wrong (``benchmarks/coloured_mnist.py``, p = 0.5).
"""


@dataclass(frozen=True)
class Flags:
    """The training examples to act on.

    Attributes:
        flagged: (N,) bool.
        reasons: K strings or None: why nothing is flagged in a class, or not all.
        suspected: (K,) int64, number of suspected label errors that are left out.
        doubted: (K,) int64, number of examples left out because a probe does not support their label.
        review: The left out examples, for a person to inspect.
    """

    flagged: BoolArray
    reasons: tuple[str | None, ...]
    suspected: IntArray
    doubted: IntArray
    review: tuple[dict[str, Any], ...] = ()

    def class_fields(self, k: int) -> dict[str, Any]:
        """Return the fields of the report that say what was flagged in class k."""
        return {"suspected": int(self.suspected[k]), "doubted": int(self.doubted[k]), "reason": self.reasons[k]}


def flag_examples(
    examples: JudgedExamples, round: Round | None, *, max_flagged: float, triage: bool, by: FlagBy = "directions"
) -> Flags:
    """Flag training examples of classes with a pattern, without those whose labels are doubtful. Collective.

    With ``by="early"`` those are flagged that the model of an early epoch gets wrong, in all classes but the untreated.

    Where most failures of validation look like doubtful labels (``round.report.doubtful``), only examples whose label a
    probe supports are flagged. The probe is fitted on the discovery part: one of the training set would have learned
    the shortcut, and would doubt the minority.

    Args:
        examples: The judged training examples.
        round: The round of decisions; None: no label is checked.
        max_flagged: Largest share of the examples of a class that may be flagged, the hardest first, in (0, 1].
        triage: Check labels.
        by: What flags them.

    Raises:
        ConfigurationError: Flags by early answers are wanted, but there are none.
    """
    counts = len(examples.class_names)
    wrong, hardness, reasons = _judged(examples, by)
    candidates = wrong & np.isin(examples.labels, [k for k, reason in enumerate(reasons) if reason is None])
    doubted = np.zeros(len(examples.labels), dtype=np.bool_)
    doubts: list[dict[str, Any]] = []
    if triage and round is not None and round.report.doubtful and candidates.any():
        doubts = _doubts(examples, round, np.flatnonzero(candidates), doubted)

    flagged = _hardest_of_classes(examples, candidates & ~doubted, hardness, reasons, max_flagged)
    if by == "directions" and examples.retained is not None and examples.retained.any():
        flagged |= examples.retained
        for k in np.unique(examples.labels[examples.retained & (examples.labels != LEFT_OUT)]):
            reasons[k] = f"as before: {reasons[k]}"

    review: tuple[dict[str, Any], ...] = ()
    if triage and round is not None and flagged.any():
        review = round.suspects(np.flatnonzero(flagged))
        flagged[[entry["id"] for entry in review]] = False
    suspected = np.array([entry["label"] for entry in review], dtype=np.int64)
    return Flags(
        flagged,
        tuple(reasons),
        np.bincount(suspected, minlength=counts),
        np.bincount(examples.labels[doubted], minlength=counts),
        (*review, *doubts),
    )


def largest_factor(max_factor: float, round: Round | None) -> float:
    """Return the largest weight of a flagged example, at most ``max_factor``, in a round of decisions."""
    return min(max_factor, DOUBTFUL_FACTOR) if round is not None and round.report.doubtful else max_factor


def _judged(examples: JudgedExamples, by: FlagBy) -> tuple[BoolArray, FloatArray, list[str | None]]:
    """Return which examples (N,) can be flagged, values (N,) that rank them, the hardest first, and reasons (K,)."""
    if by == "directions":
        return examples.values < 0, examples.values.astype(np.float64), list(examples.reasons)
    early = examples.early
    if early is None:
        raise ConfigurationError(
            "Flags by early answers need the answers of the model of an early epoch, which a training with"
            " FailureModes(interventions=...) keeps: JudgedExamples(early=...)."
        )
    return early.wrong, early.confidence.astype(np.float64), [r if r == UNTREATED else None for r in examples.reasons]


def _hardest_of_classes(
    examples: JudgedExamples,
    candidates: BoolArray,
    values: FloatArray,
    reasons: list[str | None],
    max_flagged: float,
) -> BoolArray:
    """Return the candidates of each class with the smallest values, up to a share; a cap is added to the reasons."""
    counts = len(examples.class_names)
    limits = (max_flagged * np.bincount(examples.labels[examples.labels != LEFT_OUT], minlength=counts)).astype(
        np.int64
    )
    rows = np.flatnonzero(candidates)
    rows = rows[np.lexsort((rows, values[rows], examples.labels[rows]))]  # by class, the hardest first
    found = np.bincount(examples.labels[rows], minlength=counts)
    rank = np.arange(len(rows)) - (np.cumsum(found) - found)[examples.labels[rows]]
    flagged = np.zeros(len(candidates), dtype=np.bool_)
    flagged[rows[rank < limits[examples.labels[rows]]]] = True
    for k in np.flatnonzero(found > limits):
        reasons[k] = "capped at max_flagged"
    return flagged


def _doubts(
    examples: JudgedExamples, round: Round, rows: NDArray[np.int64], doubted: BoolArray
) -> list[dict[str, Any]]:
    """Mark the rows whose label a probe does not support, and return the most doubtful ones for review. Collective."""
    margins, rival = round.label_margins(rows)
    against = np.flatnonzero(margins < 0)
    doubted[rows[against]] = True
    names = examples.class_names
    return [
        {
            "id": int(rows[place]),
            "label": int(examples.labels[rows[place]]),
            "class": names[examples.labels[rows[place]]],
            "supported": names[rival[place]],
            "label_margin": float(margins[place]),
        }
        for place in against[np.argsort(margins[against], kind="stable")][:MAX_REVIEW]
    ]
