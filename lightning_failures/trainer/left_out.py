"""What cannot be graded in one pass over a loader: counted and named, while everything else counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_failures.core.text import listed_ids
from lightning_failures.data.grading import UNLABELLED_REMEDY
from lightning_failures.errors import DataError
from lightning_failures.trainer.ranks import Communicator

MIN_LEFT_OUT = 8
"""Number of examples, the first of a pass, that may all be impossible to grade before their error is raised."""


class LeftOut:
    """The examples of a pass that cannot be graded, and the labels of single conditions of a multilabel task.

    Args:
        ranks: The processes of the run.

    Attributes:
        problem: The error of the first batch that had one; None if there was none.
    """

    def __init__(self, ranks: Communicator) -> None:
        self.problem: str | None = None
        self._ranks = ranks
        self._examples: dict[str, set[int]] = {}  # ids by reason
        self._labels: set[tuple[int, int]] = set()  # ids and conditions

    def add(
        self,
        reasons: Mapping[str, Tensor],
        ids: Tensor,
        error: DataError,
        *,
        outside: Tensor | None = None,
        any_graded: bool,
    ) -> Tensor:
        """Record what cannot be graded in a batch, and return the examples that can, (B,) bool.

        Args:
            reasons: The examples that cannot be graded, (B,) bool by reason.
            ids: (B,) int64.
            error: The error of the batch.
            outside: (B, K) bool, the labels of a multilabel task that cannot be graded.
            any_graded: Whether an example was graded before.

        Raises:
            DataError: The error is not one of single examples or labels, or no example could be graded so far.
        """
        gradable = torch.ones(len(ids), dtype=torch.bool)
        for reason, rows in reasons.items():
            self._examples.setdefault(reason, set()).update(ids[rows].tolist())
            gradable &= ~rows
        labels = [] if outside is None else outside.nonzero().tolist()
        self._labels |= {(int(ids[row]), condition) for row, condition in labels}
        n_left_out = len(set().union(*self._examples.values()))
        hopeless = not any_graded and not gradable.any() and n_left_out >= MIN_LEFT_OUT
        if hopeless or (gradable.all() and not labels):
            raise error
        self.problem = self.problem or str(error)
        return gradable

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each reason why examples or labels have no grade, for the report. Collective."""
        examples, labels = self._gathered()
        notes = [
            f"{len(ids)} example{'s' if len(ids) > 1 else ''} could not be graded ({reason}): {listed_ids(ids)}."
            + (f" {UNLABELLED_REMEDY}" if reason.startswith("label") else "")
            for reason, ids in examples.items()
        ]
        if labels:
            notes.append(
                f"{len(labels)} label{'s' if len(labels) > 1 else ''} of conditions could not be graded (outside"
                f" 0 ... 1): {listed_ids({example for example, _ in labels})}. {UNLABELLED_REMEDY}"
            )
        return tuple(notes)

    def check(self, *, examples: int, rows: int) -> None:
        """Raise the error of the first batch that had one if at least half is left out. Collective.

        Args:
            examples: Number of graded examples.
            rows: Number of their rows.

        Raises:
            DataError: With the number of examples or labels.
        """
        by_reason, labels = self._gathered()
        problem = next(filter(None, self._ranks.gather_objects(self.problem)), None)
        n_examples = len(set().union(*by_reason.values()))
        for left_out, graded, what in ((n_examples, examples, "examples"), (len(labels), rows, "labels")):
            if left_out and left_out >= graded:
                raise DataError(f"{left_out} of {left_out + graded} {what} cannot be graded. {problem}")

    def _gathered(self) -> tuple[dict[str, set[int]], set[tuple[int, int]]]:
        """Return the ids of the examples by reason, and the labels, of all ranks. Collective."""
        examples: dict[str, set[int]] = {}
        labels: set[tuple[int, int]] = set()
        for some_examples, some_labels in self._ranks.gather_objects((self._examples, self._labels)):
            labels |= some_labels
            for reason, ids in some_examples.items():
                examples.setdefault(reason, set()).update(ids)
        return examples, labels
