"""Upweight gives training examples that the directions flag more weight.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, Table 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_failures.interventions.base import (
    LEFT_OUT,
    Decision,
    Intervention,
    JudgedExamples,
    Round,
    is_number,
)

MAX_FACTOR = 10.0
"""Largest factor; with larger ones an epoch repeats few examples many times."""


class Upweight(Intervention):
    r"""Gives training examples flagged by the direction of their own class the weight ``factor``.

    The paper's objective is the sum of the losses l of the unflagged + u * the sum of those of the flagged, with u the
    factor. Here the weights change how often examples are drawn, not the loss: with N examples, F of them flagged, and
    n draws per epoch, an example is drawn n * w / (N - F + u * F) times in expectation, w = u if it is flagged and else
    1. So the mean loss of an epoch estimates

        (sum of l over unflagged + u * sum of l over flagged) / (N - F + u * F)

    and the length of epochs, schedules and the size of steps stay unchanged. With ``grow_epoch=True`` n is
    N - F + u * F instead: unflagged examples are drawn once, as before, flagged ones u times in expectation.

    Departures from the paper: the number of draws is normalised as above; a class that no longer has enough failures
    for a direction keeps its weights, because without them the failures would come back; a class whose p-value does not
    survive Benjamini-Hochberg over classes is left unchanged, because its direction means nothing; and at most
    ``max_flagged`` of a class count as flagged, the hardest first, because a direction that flags nearly all examples
    does not separate them.

    With ``weight_key`` draws stay unchanged, and the training step applies the weights: every example of the training
    set carries w * N / (N - F + u * F) under this key (tuples: as their last element). The mean over the training set
    is 1, so ``(batch["weight"] * losses).mean()`` estimates the same objective, without the noise of drawing.

    Suspected label errors are excluded, and listed for review: more weight makes a failure with a wrong label worse. A
    label is suspected if the model is wrong on the example, at least 8 of its 10 nearest neighbours in the space of the
    encoder have the predicted class as their label, and a cross-fitted probe gives its own label less than 0.1
    (:func:`~lightning_failures.interventions.label_errors.suspect_labels`).

    Args:
        factor: u, from 1 to 10. With 1 the training is exactly the same as without the intervention.
        max_flagged: Largest share of the examples of a class that may count as flagged, in (0, 1].
        triage: Exclude suspected label errors, by the ``validation_step`` of the module on flagged examples.
        weight_key: Key of the loss weights in the batch; None: weights change how often examples are drawn.
        **schedule: When it acts: ``start_epoch``, ``every_n_epochs``, ``stop_epoch``, ``dry_run`` and ``grow_epoch`` of
            :class:`~lightning_failures.interventions.Intervention`.

    Raises:
        ConfigurationError: An option outside its range.

    >>> examples = JudgedExamples(
    ...     labels=np.array([0, 0, 0, 1, 1]),
    ...     values=np.array([-1.0, 1.0, 2.0, -1.0, 1.0], dtype=np.float32),
    ...     class_names=("cat", "dog"),
    ...     reasons=(None, "no pattern"),
    ... )
    >>> Upweight(factor=2.0, triage=False).decide(examples).weights.tolist()
    [2.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        factor: float = 2.0,
        *,
        max_flagged: float = 0.5,
        triage: bool = True,
        weight_key: str | None = None,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        self.factor = factor
        self.max_flagged = max_flagged
        self.triage = triage
        self.weight_key = weight_key
        self._check("factor", is_number(factor) and 1 <= factor <= MAX_FACTOR, f"from 1 to {MAX_FACTOR:g}")
        self._check("max_flagged", is_number(max_flagged) and 0 < max_flagged <= 1, "a share in (0, 1]")
        self._check("weight_key", weight_key is None or bool(weight_key), "None or the name of a key")

    @property
    def changes_training(self) -> bool:
        """Whether the intervention can change the training at all."""
        return not self.dry_run and self.factor != 1

    def decide(self, examples: JudgedExamples, round: Round | None = None) -> Decision:
        """Weight the flagged examples of classes with a pattern; without a round there is no triage."""
        flagged, reasons = self._flagged(examples)

        # suspected label errors are excluded
        review: tuple[dict[str, Any], ...] = ()
        if self.triage and round is not None and flagged.any():
            review = round.suspects(np.flatnonzero(flagged))
            flagged[[entry["id"] for entry in review]] = False
        weights = np.where(flagged, self.factor, 1.0)
        suspected = np.bincount(
            np.array([entry["label"] for entry in review], dtype=np.int64), minlength=len(examples.class_names)
        )
        classes = self._class_entries(examples, flagged, suspected, reasons)
        return Decision(weights, tuple(classes), review=review)

    def _flagged(self, examples: JudgedExamples) -> tuple[NDArray[np.bool_], list[str | None]]:
        """Return the examples (N,) to upweight, retained ones included, and the reason of each class."""
        flagged = np.zeros(len(examples.labels), dtype=np.bool_)
        reasons: list[str | None] = list(examples.reasons)
        for k, reason in enumerate(examples.reasons):
            if reason is None:
                rows = np.flatnonzero(examples.labels == k)
                chosen, capped = self._hardest(rows, examples.values[rows])
                flagged[chosen] = True
                reasons[k] = "capped at max_flagged" if capped else None
        if examples.retained is not None and examples.retained.any():
            flagged |= examples.retained
            for k in np.unique(examples.labels[examples.retained & (examples.labels != LEFT_OUT)]):
                reasons[k] = f"as before: {reasons[k]}"
        return flagged, reasons

    def _class_entries(
        self,
        examples: JudgedExamples,
        flagged: NDArray[np.bool_],
        suspected: NDArray[np.int64],
        reasons: list[str | None],
    ) -> list[dict[str, Any]]:
        """Return one entry per class for the report: numbers of examples, weight, shares of the draws, reason."""
        total = float(np.where(flagged, self.factor, 1.0).sum())
        entries: list[dict[str, Any]] = []
        for k, name in enumerate(examples.class_names):
            mine = examples.labels == k
            size, count = int(mine.sum()), int(flagged[mine].sum())
            weight = count * self.factor
            entries.append(
                {
                    "class": name,
                    "examples": size,
                    "flagged": count,
                    "suspected": int(suspected[k]),
                    "weight": float(self.factor) if count else 1.0,
                    "share": count / size if size else None,
                    "share_of_draws": float(weight / (size - count + weight)) if size else None,
                    "share_of_all_draws": float(weight / total) if total else None,
                    "reason": reasons[k],
                }
            )
        return entries

    def _hardest(self, rows: NDArray[np.int64], values: NDArray[np.float32]) -> tuple[NDArray[np.int64], bool]:
        """Return the flagged rows, the most negative first, up to ``max_flagged``; and whether the limit cut some."""
        order = np.argsort(values, kind="stable")
        flagged = rows[order][: int((values < 0).sum())]
        limit = int(self.max_flagged * len(rows))
        return flagged[:limit], len(flagged) > limit
