"""RetrainHead refits the last layer of the model, with the flagged and the unflagged examples of equal mass.

Source: Kirichenko et al., Last Layer Re-Training is Sufficient for Robustness to Spurious Correlations, ICLR 2023; the
groups come from failure directions (:mod:`lightning_failures.interventions.head`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from lightning_failures.core.types import IntArray
from lightning_failures.interventions.base import (
    LEFT_OUT,
    Decision,
    JudgedExamples,
    LastLayer,
    Round,
    is_number,
)
from lightning_failures.interventions.flags import Flags, flag_examples, largest_factor
from lightning_failures.interventions.head import (
    MAX_FACTOR,
    MIN_GROUP,
    PENALTIES,
    fit_head,
    group_codes,
    random_flags,
)
from lightning_failures.interventions.head_measures import harm, measure_heads
from lightning_failures.interventions.refit import LastLayerIntervention

RANDOM_CONTROLS = 3
"""Number of heads that are refitted with random flags."""


class RetrainHead(LastLayerIntervention):
    r"""Refits the last layer to the penultimate features of the training set, flagged and unflagged of equal mass.

    The new layer is a multinomial logistic regression in which every class has the same mass, half of which belongs to
    the examples that the direction of the class flags (:func:`~lightning_failures.interventions.head.fit_head`). The
    other layers are unchanged, so a refit costs one pass of the model over the training set. It helps where the model
    has features of what counts but weighs them wrongly: with a shortcut, not with too few examples of a kind. Where
    most failures of validation look like doubtful labels, a flagged example counts at most twice.

    It acts when the training has ended: the weights of the last layer are replaced in place, and the checkpoint
    ``failures/retrained.ckpt`` is written. With ``every_n_epochs`` it also acts before epochs of the training.

    Refitting alone may gain, so the report holds controls: heads fitted with the same penalty without flags (uniform),
    and with random flags, the same number in each class. All are measured on the report part, which no direction was
    fitted to: accuracy, accuracy on the frozen slice, and accuracy in the worst group (class x slice, at least 10
    examples). The verdict compares the new head with the controls on the frozen slice.

    With ``AdvancedOptions(auto_rollback=True)`` a new head with which accuracy on the decision part falls by more than
    2 points, significantly, is not used.

    Needs a last layer ``nn.Linear`` with a bias, whose output are the logits of one class per example, in a model that
    every process holds as a whole. Optimizers keep their state. Callbacks that replace the weights when the training
    ends, such as weight averaging, must stand before ``FailureModes``.

    Args:
        head: Name of the last layer; None: it is found.
        data: ``"train"``: fit to the training set. ``"validation"``: spend half of the discovery part of the validation
            set on the fit. No direction, and no number of the report, is then computed on these examples.
        every_n_epochs: Act before every n-th epoch from ``start_epoch`` on too. None: only at the end.
        max_flagged: Largest share of the examples of a class that may count as flagged, in (0, 1].
        max_factor: Largest weight of a flagged example, in units of that of the others of its class, at least 1.
        triage: Exclude training examples with doubtful labels from the flagged, as
            :class:`~lightning_failures.interventions.Upweight` does.
        penalties: L2 penalties > 0, from which cross-validation chooses by the worst group.
        folds: Number of folds of the cross-validation.
        **schedule: ``start_epoch``, ``stop_epoch`` and ``dry_run`` of
            :class:`~lightning_failures.interventions.Intervention`; ``dry_run`` reports what a new head would gain.

    Raises:
        ConfigurationError: An option outside its range.

    >>> RetrainHead().decision_index(3), RetrainHead(every_n_epochs=2).decision_index(3)
    (None, 1)
    """

    def __init__(
        self,
        *,
        head: str | None = None,
        data: Literal["train", "validation"] = "train",
        every_n_epochs: int | None = None,
        max_flagged: float = 0.5,
        max_factor: float = MAX_FACTOR,
        triage: bool = True,
        penalties: Sequence[float] = PENALTIES,
        folds: int = 3,
        **schedule: Any,
    ) -> None:
        super().__init__(head=head, every_n_epochs=every_n_epochs, penalties=penalties, folds=folds, **schedule)
        self.data = data
        self.max_flagged = max_flagged
        self.max_factor = max_factor
        self.triage = triage
        self._check("data", data in ("train", "validation"), "'train' or 'validation'")
        self._check("max_flagged", is_number(max_flagged) and 0 < max_flagged <= 1, "a share in (0, 1]")
        self._check("max_factor", is_number(max_factor) and 1 <= max_factor < math.inf, "a number >= 1")

    @property
    def spends_validation(self) -> bool:
        """Whether a part of the validation set is spent on the fit."""
        return self.data == "validation"

    def decide(self, examples: JudgedExamples, round: Round) -> Decision:
        """Fit a new head, and the controls; measure all on the report part."""
        weights = np.ones(len(examples.labels))
        flags: Flags | None = None
        if not self.spends_validation:
            flags = flag_examples(examples, round, max_flagged=self.max_flagged, triage=self.triage)
            if not flags.flagged.any():
                entries = _class_entries(examples.class_names, examples.labels, flags)
                return Decision(weights, entries, review=flags.review)
        layer = self._read_layer(round, spend_validation=self.spends_validation)

        def study() -> Decision:
            assert layer is not None  # on the first process
            factor = largest_factor(self.max_factor, round)
            return self._study(layer, examples, flags, max_factor=factor, seed=round.seed)

        decision = round.on_first(study)
        return replace(decision, weights=weights, review=() if flags is None else flags.review)

    def _study(
        self, layer: LastLayer, examples: JudgedExamples, flags: Flags | None, *, max_factor: float, seed: int
    ) -> Decision:
        """Fit and measure heads; the weights of the decision are left to the caller."""
        fitting = layer.fitting
        if flags is None:  # the spent part, whose labels are not checked
            spent = replace(examples, labels=fitting.labels, values=fitting.values, retained=None)
            flags = flag_examples(spent, None, max_flagged=self.max_flagged, triage=False)
            flagged, entries = flags.flagged, _class_entries(examples.class_names, fitting.labels, flags)
        else:
            flagged = flags.flagged[fitting.rows]
            entries = _class_entries(examples.class_names, examples.labels, flags)
        nothing = Decision(np.empty(0), entries)
        split = group_codes(fitting.labels, flagged) % 2 == 1
        if not split.any():
            note = (
                f"RetrainHead keeps the last layer: no class has {MIN_GROUP} flagged and {MIN_GROUP} other examples."
                if flagged.any()
                else "RetrainHead keeps the last layer: nothing is flagged."
            )
            return replace(nothing, notes=(note,))

        # the new head, and the controls with the same penalty
        common: dict[str, Any] = {
            "classes": len(layer.head.bias),
            "max_factor": max_factor,
            "folds": self.folds,
            "groups": fitting.groups,
            "seed": seed,
            "device": layer.device,
        }
        fit = fit_head(fitting.features, fitting.labels, flagged, penalties=self.penalties, **common)
        new = self._new_head(layer, fit.weight, fit.bias)
        controls = []
        for draw in range(RANDOM_CONTROLS + 1):
            other = None if draw == 0 else random_flags(fitting.labels, flagged, seed=seed + draw)
            control = fit_head(fitting.features, fitting.labels, other, penalties=[fit.penalty], **common)
            controls.append(layer.with_weights(control.weight, control.bias))

        arms = {"before": [layer.head], "retrained": [new], "uniform": controls[:1], "random": controls[1:]}
        measured, verdict = measure_heads(
            layer.report, arms, tested="retrained", against=("uniform", "random"), without="the flags", seed=seed
        )
        details: dict[str, Any] = {
            "head": new.name,
            "fitted_on": len(fitting.labels),
            "features": int(new.weight.shape[1]),
            "max_factor": max_factor,
            "penalty": fit.penalty,
            "cross_validation": [
                {"penalty": penalty, "worst_group": worst, "mean_group": mean}
                for penalty, worst, mean in zip(fit.penalties, fit.worst_group, fit.mean_group, strict=True)
                if np.isfinite(worst)
            ],
            "measured": measured,
            "verdict": verdict.to_dict(),
        }
        found = harm(layer.decision, layer.head, new, seed=seed)
        if found is not None:
            details["dropped"] = found.sentence
            return replace(nothing, details=details, notes=(f"RetrainHead keeps the last layer: {found.sentence}",))
        return replace(nothing, head=new, details=details)


def _class_entries(names: Sequence[str], labels: IntArray, flags: Flags) -> tuple[dict[str, Any], ...]:
    """Return one entry per class for the report."""
    taking_part = labels != LEFT_OUT
    sizes = np.bincount(labels[taking_part], minlength=len(names))
    counts = np.bincount(labels[taking_part & flags.flagged], minlength=len(names))
    entries = []
    for k, name in enumerate(names):
        entry = {
            "class": name,
            "examples": int(sizes[k]),
            "flagged": int(counts[k]),
            "share": float(counts[k] / sizes[k]) if sizes[k] else None,
        }
        entry |= flags.class_fields(k)
        if 0 < counts[k] < MIN_GROUP:
            entry["reason"] = f"weighted as one group: {counts[k]} flagged; at least {MIN_GROUP} are needed"
        entries.append(entry)
    return tuple(entries)
