"""AddFiltered adds the hardest examples of a labelled pool to the training set.

Source: Jain et al., Distilling Model Failures as Directions in Latent Space, ICLR 2023, section 4.1, figure 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from lightning_failures.core.text import listed_reasons
from lightning_failures.data.report import ClassReport
from lightning_failures.interventions.base import (
    PICKS_BY,
    Decision,
    Intervention,
    JudgedExamples,
    PickBy,
    Round,
    is_number,
)


class AddFiltered(Intervention):
    """Adds the hardest ``per_class`` examples of each class of a labelled pool to the training set.

    The pool is streamed, some thousands of examples at a time, and its images are embedded once per run. A class
    without a pattern gets no examples. The picks of a decision replace those of the decision before. An epoch keeps its
    length, so an added example is drawn as often as any other, and all are drawn a little less often than before.

    Departures from the paper: classes whose p-value does not survive Benjamini-Hochberg get no examples; images that
    are in the training set, or nearly so, are not picked, and of nearly equal images of the pool only one is. Images
    that are in the validation set, or nearly so, are never picked, since the report would then be about images that
    were trained on.

    If the pool has ``classes`` and the training set too, labels are matched by name: a pool with the same classes in
    another order, or some of them, is renumbered, and one with other classes is an error.

    Args:
        pool: A map-style dataset whose examples have the form, and the transform, of those of the training set.
        per_class: Number of examples to add for each class.
        by: ``"decision_value"``, the most negative first, as in the paper; ``"confidence"``, the least confident first,
            the usual way to pick; ``"flagged_confidence"``, the least confident of those with a negative decision
            value, which are less alike; ``"early"``, the least confident by the model of an early epoch, as in Just
            Train Twice (Liu et al., ICML 2021); ``"random"``, for comparison. The ways by confidence run the
            ``validation_step`` of the module on examples of the pool: ``"early"`` once, on all of them, in the first
            validation that is analysed from ``early_epoch`` on; the others read the pool again at each decision.
        view: The same examples in the same order through the transform of validation. None: decision values are
            computed on the pool itself.
        triage: Exclude suspected label errors (see :class:`Upweight`), with ten candidates for each wanted example.
            Runs the ``validation_step`` of the module on them.
        similarity: Cosine of embeddings above which two images are nearly equal, for images of the training and the
            validation set alike; 1 drops exact copies only.
        diverse: Spread the examples over ten candidates for each wanted one, from the hardest on, instead of taking the
            hardest: those with the most negative decision values look alike. Ranked by decision value, only flagged
            examples are candidates, as long as there are enough. The candidates and their embeddings are in memory.
        early_epoch: The epoch of ``by="early"``, counted from 0 and before ``start_epoch``.
        **schedule: When it acts: ``start_epoch``, ``every_n_epochs``, ``stop_epoch``, ``dry_run`` and ``grow_epoch`` of
            :class:`~lightning_failures.interventions.Intervention`.

    Raises:
        ConfigurationError: An option outside its range.

    >>> AddFiltered([("image", 0)], per_class=20, by="flagged_confidence")
    AddFiltered(pool='list of 1', per_class=20, by='flagged_confidence', view=None, triage=True, similarity=0.995, \
diverse=False, early_epoch=0, start_epoch=1, every_n_epochs=1, stop_epoch=None, dry_run=False, grow_epoch=False)
    """

    def __init__(
        self,
        pool: Dataset,  # type: ignore[type-arg]  # bare, so that YAML can fill it
        per_class: int = 100,
        *,
        by: PickBy = "decision_value",
        view: Dataset | None = None,  # type: ignore[type-arg]
        triage: bool = True,
        similarity: float = 0.995,
        diverse: bool = False,
        early_epoch: int = 0,
        **schedule: Any,
    ) -> None:
        super().__init__(**schedule)
        self.pool = pool
        self.per_class = per_class
        self.by: PickBy = by
        self.view = view
        self.triage = triage
        self.similarity = similarity
        self.diverse = diverse
        self.early_epoch = early_epoch
        both = (pool, pool if view is None else view)
        indexed = all(hasattr(data, "__len__") and hasattr(data, "__getitem__") for data in both)
        self._check("pool", indexed, "a map-style dataset, and so must be its view")
        self._check("view", view is None or len(view) == len(pool), "None or as long as the pool")  # type: ignore[arg-type]
        self._check("per_class", isinstance(per_class, int) and per_class >= 1, "an integer >= 1")
        self._check("by", by in PICKS_BY, f"one of {', '.join(PICKS_BY)}")
        self._check("similarity", is_number(similarity) and 0 < similarity <= 1, "a cosine in (0, 1]")
        self._check_early(early_epoch, wanted=by == "early")

    @property
    def wants_early(self) -> int | None:
        """Epoch after which the answers of the model on the pool are kept; None: none."""
        return self.early_epoch if self.by == "early" else None

    def source(self, training_set: Any, folder: Path) -> Any:
        """Return the pool."""
        return self.pool

    def decide(self, examples: JudgedExamples, round: Round) -> Decision:
        """Pick examples for the classes with a pattern."""
        eligible = [k for k, reason in enumerate(examples.reasons) if reason is None]
        found = None
        if eligible:
            found = round.pick(
                self.pool,
                self.view,
                per_class=self.per_class,
                by=self.by,
                classes=eligible,
                similarity=self.similarity,
                triage=self.triage,
                diverse=self.diverse,
                early=examples.early,
            )
        entries: list[dict[str, Any]] = []
        for k, (name, reason) in enumerate(zip(examples.class_names, examples.reasons, strict=True)):
            picks = None if found is None or reason is not None else found.classes[k]
            entries.append(
                {
                    "class": name,
                    "examples": int((examples.labels == k).sum()),
                    "added": 0 if picks is None else len(picks.ids),
                    "pool_ids": [] if picks is None else picks.ids.tolist(),
                    "in_pool": None if picks is None else picks.seen,
                    "in_training": None if picks is None else picks.in_training,
                    "near_duplicates": None if picks is None else picks.near_duplicates,
                    "suspected": None if picks is None else picks.suspected,
                    "in_validation": None if picks is None else picks.in_validation,
                    "expected_gain": None if picks is None else round.report.classes[k].gain,
                    "reason": reason if picks is None else picks.shortfall,
                }
            )
        added = np.empty(0, dtype=np.int64) if found is None else found.ids.numpy()
        leaked = sum(entry["in_validation"] or 0 for entry in entries)
        note = (
            f"AddFiltered left out {leaked} {'image' if leaked == 1 else 'images'} of the pool that are, or nearly are,"
            " images of the validation set."
        )
        notes = [note] if leaked else []
        if found is not None and found.left_out:
            n = len(found.left_out)
            items = "item of the pool, which is" if n == 1 else "items of the pool, which are"
            notes.append(f"AddFiltered could not read or embed {n} {items} left out: {listed_reasons(found.left_out)}.")
        return Decision(
            np.ones(len(examples.labels)),
            tuple(entries),
            added=added,
            notes=tuple(notes),
            expected_drop=_expected_drop(round.report.classes, eligible),
            details={} if examples.early is None else {"early_epoch": examples.early.epoch},
        )


def _expected_drop(classes: Sequence[ClassReport], eligible: Sequence[int]) -> float | None:
    """Return how much the error rate of the flagged examples falls if they fail as the others do; None without gains.

    >>> _expected_drop([ClassReport("cat", 90, flagged=20, gain=10.0), ClassReport("dog", 90, flagged=30)], [0])
    0.5
    """
    known = [(classes[k].gain, classes[k].flagged) for k in eligible]
    pairs = [(gain, flagged) for gain, flagged in known if gain is not None and flagged]
    return sum(gain for gain, _ in pairs) / sum(flagged for _, flagged in pairs) if pairs else None
