"""Upweight gives training examples that the directions flag more weight.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, Table 1.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import numpy as np

from lightning_failures.core.types import FloatArray, IntArray
from lightning_failures.interventions.base import LEFT_OUT, Decision, Intervention, JudgedExamples, Round, is_number
from lightning_failures.interventions.flags import FlagBy, Flags, flag_examples, largest_factor
from lightning_failures.interventions.head import MAX_FACTOR


class Upweight(Intervention):
    r"""Gives training examples flagged by the direction of their own class more weight.

    With ``factor="balanced"`` the flagged and the unflagged examples of a class get the same total weight: a flagged
    one counts u = (unflagged / flagged) times, at most ``max_factor`` times. With a number u is the same for all
    classes; the paper's experiments take 2.

    The paper's objective is the sum of the losses l of the unflagged + u * the sum of those of the flagged, with u the
    factor. Here the weights change how often examples are drawn, not the loss: with N examples, F of them flagged, and
    n draws per epoch, an example is drawn n * w / (N - F + u * F) times in expectation, w = u if it is flagged and else
    1. So the mean loss of an epoch estimates

        (sum of l over unflagged + u * sum of l over flagged) / (N - F + u * F)

    and the length of epochs, schedules and the size of steps stay unchanged. With ``grow_epoch=True`` n is
    N - F + u * F instead: unflagged examples are drawn once, as before, flagged ones u times in expectation.

    Departures from the paper: u is balanced by default, because a fixed factor of 2 leaves a rare minority rare; the
    number of draws is normalised as above; a class that no longer has enough failures for a direction keeps its
    weights, because without them the failures would come back; a class whose p-value does not survive
    Benjamini-Hochberg over classes is left unchanged, because its direction means nothing; and at most ``max_flagged``
    of a class count as flagged, the hardest first, because a direction that flags nearly all examples does not separate
    them.

    With ``weight_key`` draws stay unchanged, and the training step applies the weights: every example of the training
    set carries w * N / (N - F + u * F) under this key (tuples: as their last element). The mean over the training set
    is 1, so ``(batch["weight"] * losses).mean()`` estimates the same objective, without the noise of drawing.

    Doubtful labels are excluded, and listed for review: more weight makes a failure with a wrong label worse. A label
    is suspected if the model is wrong on the example, at least 8 of its 10 nearest neighbours in the space of the
    encoder have the predicted class as their label, and a cross-fitted probe gives its own label less than 0.1
    (:func:`~lightning_failures.interventions.label_errors.suspect_labels`). Where most failures of validation look like
    doubtful labels, only examples whose label a probe of the validation set supports count as flagged
    (:func:`~lightning_failures.interventions.flags.flag_examples`), at most twice if the weights are balanced.

    ``flags="early"`` is Just Train Twice (Liu et al., ICML 2021) within one training: those examples count as flagged
    that the model of an early epoch gets wrong, in all classes, whatever the directions find. The answers of that model
    are kept by one pass over the training set, in the first validation that is analysed from ``early_epoch`` on; they
    are part of the checkpoint. Departures from the paper: the training goes on instead of beginning again, and labels
    are checked as above (``triage=False``: none is).

    Args:
        factor: ``"balanced"``, or u, from 1 to ``max_factor``. With 1 the training is exactly the same as without the
            intervention.
        max_factor: Largest u; with larger ones an epoch repeats few examples many times.
        max_flagged: Largest share of the examples of a class that may count as flagged, in (0, 1].
        triage: Exclude doubtful labels, by the ``validation_step`` of the module on flagged examples.
        weight_key: Key of the loss weights in the batch; None: weights change how often examples are drawn.
        flags: ``"directions"``, or ``"early"``: the errors of the model of an early epoch.
        early_epoch: That epoch, counted from 0 and before ``start_epoch``.
        **schedule: When it acts: ``start_epoch``, ``every_n_epochs``, ``stop_epoch``, ``dry_run`` and ``grow_epoch`` of
            :class:`~lightning_failures.interventions.Intervention`.

    Raises:
        ConfigurationError: An option outside its range.

    >>> examples = JudgedExamples(
    ...     labels=np.array([0, 0, 0, 0, 1, 1]),
    ...     values=np.array([-1.0, 1.0, 2.0, 3.0, -1.0, 1.0], dtype=np.float32),
    ...     class_names=("cat", "dog"),
    ...     reasons=(None, "no pattern"),
    ... )
    >>> Upweight(triage=False).decide(examples).weights.tolist()
    [3.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    >>> Upweight(factor=2.0, triage=False).decide(examples).weights.tolist()
    [2.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        factor: float | Literal["balanced"] = "balanced",
        *,
        max_factor: float = MAX_FACTOR,
        max_flagged: float = 0.5,
        triage: bool = True,
        weight_key: str | None = None,
        flags: FlagBy = "directions",
        early_epoch: int = 0,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        self.factor = factor
        self.max_factor = max_factor
        self.max_flagged = max_flagged
        self.triage = triage
        self.weight_key = weight_key
        self.flags: FlagBy = flags
        self.early_epoch = early_epoch
        self._check("max_factor", is_number(max_factor) and 1 <= max_factor < math.inf, "a number >= 1")
        in_range = is_number(factor) and 1 <= float(factor) <= max_factor
        self._check("factor", factor == "balanced" or in_range, f"'balanced' or from 1 to max_factor={max_factor:g}")
        self._check("max_flagged", is_number(max_flagged) and 0 < max_flagged <= 1, "a share in (0, 1]")
        self._check("weight_key", weight_key is None or bool(weight_key), "None or the name of a key")
        self._check("flags", flags in get_args(FlagBy), f"one of {', '.join(get_args(FlagBy))}")
        self._check_early(early_epoch, wanted=flags == "early")

    @property
    def announcement(self) -> str | None:
        """What the run says once: that the weights are balanced, which was not the default of former versions."""
        if self.factor != "balanced":
            return None
        return (
            "Upweight gives the flagged and the unflagged training examples of a class equal weight, each flagged one"
            f" at most {self.max_factor:g} times that of the others. Upweight(factor=2.0) is the former default."
        )

    @property
    def wants_early(self) -> int | None:
        """Epoch after which the answers of the model on the training set are kept; None: none."""
        return self.early_epoch if self.flags == "early" else None

    @property
    def changes_training(self) -> bool:
        """Whether the intervention can change the training at all."""
        return not self.dry_run and self.factor != 1

    def decide(self, examples: JudgedExamples, round: Round | None = None) -> Decision:
        """Weight the flagged examples of classes with a pattern; without a round no label is checked."""
        flags = flag_examples(examples, round, max_flagged=self.max_flagged, triage=self.triage, by=self.flags)
        takes_part = examples.labels != LEFT_OUT
        sizes, counts = (
            np.bincount(examples.labels[rows & takes_part], minlength=len(examples.class_names))
            for rows in (takes_part, flags.flagged)
        )
        factors = self._factors(sizes, counts, largest_factor(self.max_factor, round))
        weights = np.ones(len(examples.labels))
        weights[flags.flagged] = factors[examples.labels[flags.flagged]]
        details = {} if examples.early is None else {"early_epoch": examples.early.epoch}
        entries = _class_entries(examples, flags, sizes, counts, factors)
        return Decision(weights, entries, review=flags.review, details=details)

    def _factors(self, sizes: IntArray, counts: IntArray, largest: float) -> FloatArray:
        """Return the weight of the flagged examples of each class (K,), 1 where there are none.

        Args:
            sizes: (K,) number of examples.
            counts: (K,) number of flagged ones.
            largest: Largest balanced weight.
        """
        if self.factor == "balanced":
            factors = np.clip((sizes - counts) / np.maximum(counts, 1), 1.0, largest)
        else:
            factors = np.full(len(sizes), float(self.factor))
        return np.where(counts > 0, factors, 1.0)


def _class_entries(
    examples: JudgedExamples, flags: Flags, sizes: IntArray, counts: IntArray, factors: FloatArray
) -> tuple[dict[str, Any], ...]:
    """Return one entry per class for the report: numbers of examples, weight, shares of the draws, reason."""
    weight = counts * factors
    total = len(examples.labels) - counts.sum() + weight.sum()
    return tuple(
        {
            "class": name,
            "examples": int(sizes[k]),
            "flagged": int(counts[k]),
            "weight": float(factors[k]),
            "share": float(counts[k] / sizes[k]) if sizes[k] else None,
            "share_of_draws": float(weight[k] / (sizes[k] - counts[k] + weight[k])) if sizes[k] else None,
            "share_of_all_draws": float(weight[k] / total) if total else None,
        }
        | flags.class_fields(k)
        for k, name in enumerate(examples.class_names)
    )
