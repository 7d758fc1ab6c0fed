"""The record of the interventions: decisions, frozen slice, trend and verdict, for reports and checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.arrays import as_array
from lightning_failures.data.grades import Grades
from lightning_failures.data.held_out import HeldOutParts
from lightning_failures.data.joining import ExampleKeys, join_examples, rows_of
from lightning_failures.data.report import FailureReport
from lightning_failures.interventions.validation_split import FrozenSlice, take_grades
from lightning_failures.steering.checkpoint import NOT_MEASURED, ControllerState


class InterventionRecord:
    """What the interventions of one run decided, and what has been measured since.

    Args:
        changing: Names of the interventions that can change the training.

    Attributes:
        entries: Name -> entry of the report about the last decision of an intervention.
        slice: (m,) int64, ids of the frozen slice: the examples of the report and decision parts that were flagged the
            first time a direction found a pattern. None before that.
        slice_epoch: Epoch of the analysis that flagged them.
        slice_then: What is known of each example of the slice at that time, (m,) each: ``failed`` bool, ``in_report``
            bool (else it is in the decision part), ``digests`` int64 if they are known. None in a run resumed from a
            checkpoint of a former version: then examples are found by their ids.
        verdict: :meth:`~lightning_failures.interventions.verdicts.Verdict.to_dict`, or "not measured".
    """

    def __init__(self, changing: Collection[str]) -> None:
        self._changing = frozenset(changing)
        self.reset()

    def reset(self) -> None:
        """Begin a new run."""
        self.entries: dict[str, dict[str, Any]] = {}
        self.slice: Tensor | None = None
        self.slice_epoch: int | None = None
        self.slice_then: dict[str, Tensor] | None = None
        self.verdict: dict[str, Any] | str = NOT_MEASURED
        self._trend: list[dict[str, Any]] = []

    @property
    def first_epoch(self) -> int | None:
        """First epoch that an intervention changes; None if none has begun.

        If no intervention can change the training (``factor=1``), the first epoch that one would have changed.
        """
        if not self._changing:
            return None if self.slice_epoch is None else self.slice_epoch + 1
        epochs = [entry["began"] for name, entry in self.entries.items() if name in self._changing]
        return min((epoch for epoch in epochs if epoch is not None), default=None)

    @property
    def began(self) -> bool:
        """Whether an intervention has begun, so that there is an effect to measure."""
        return self.first_epoch is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences about the last decisions, for the notes of the report."""
        return tuple(note for entry in self.entries.values() for note in entry.get("notes", ()))

    def freeze(self, result: AnalysisResult, epoch: int) -> None:
        """Freeze the flagged slice of the report and decision parts the first time that a direction has a pattern."""
        if self.slice is not None:
            return
        assert result.parts is not None
        patterns = torch.tensor([entry.pattern for entry in result.report.classes])
        held_out = (result.parts.report, result.parts.decision)
        flagged = [take_grades(part.grades, (part.values < 0) & patterns[part.grades.labels]) for part in held_out]
        order = torch.argsort(torch.cat([grades.ids for grades in flagged]))
        if not len(order):
            return
        then = {
            "failed": torch.cat([grades.failed for grades in flagged])[order],
            "in_report": (torch.arange(len(order)) < len(flagged[0]))[order],
        }
        digests = [grades.digests for grades in flagged if grades.digests is not None]
        if len(digests) == len(flagged):
            then["digests"] = torch.cat(digests)[order]
        self.slice, self.slice_epoch = torch.cat([grades.ids for grades in flagged])[order], epoch
        self.slice_then = then

    def frozen(self, *, report: bool) -> FrozenSlice | Tensor | None:
        """Return the slice within the report part, or else the decision part; of a former run all ids, None without."""
        if self.slice is None or self.slice_then is None:
            return self.slice
        rows = as_array(self.slice_then["in_report"]) == report
        return FrozenSlice(self._keys.take(rows), as_array(self.slice_then["failed"])[rows])

    def present(self, grades: Grades) -> Tensor | None:
        """Return the ids (s,) that the examples of the slice have in ``grades``; None without a slice."""
        if self.slice is None:
            return None
        return grades.ids[torch.from_numpy(rows_of(self._keys, grades))]

    def unmatched(self, parts: HeldOutParts) -> int:
        """Return the number of examples of the slice whose images are not in the part that they were in."""
        if self.slice is None or self.slice_then is None:
            return 0
        found = 0
        for is_report, part in ((True, parts.report), (False, parts.decision)):
            keys = self._keys.take(as_array(self.slice_then["in_report"]) == is_report)
            found += len(join_examples(keys, ExampleKeys.of(part.grades))[0])
        return len(self.slice) - found

    def unmatched_notes(self, parts: HeldOutParts) -> list[str]:
        """Return a note if some examples of the frozen slice cannot be found again."""
        unmatched = self.unmatched(parts)
        if not unmatched or self.slice is None:
            return []
        return [
            f"{unmatched} of the {len(self.slice)} examples that were flagged when the interventions began are not in"
            " this validation set: it holds other images. flagged_error_rate is the rate of then plus the change on the"
            " others."
        ]

    @property
    def _keys(self) -> ExampleKeys:
        """Keys of the slice."""
        assert self.slice is not None
        digests = (self.slice_then or {}).get("digests")
        return ExampleKeys(as_array(self.slice), None if digests is None else as_array(digests))

    def add_trend(self, epoch: int, numbers: dict[str, float]) -> None:
        """Add the headline numbers after an epoch; those of a later or the same epoch, before a resume, are dropped."""
        self._trend = [point for point in self._trend if point["epoch"] < epoch]
        self._trend.append({"epoch": epoch} | numbers)

    def mark_inactive(self, name: str) -> None:
        """Note in the entry of an intervention, if there is one, that it no longer changes the training."""
        if name in self.entries:
            self.entries[name]["changes_training"] = False

    def summary(self, rolled_back: dict[str, Any] | None) -> tuple[dict[str, Any], ...]:
        """Return one entry per intervention for the report, each with slice, trend and verdict.

        An intervention that compares itself with controls, such as RetrainHead, has a verdict of its own.

        Args:
            rolled_back: Epoch and reason of the rollback, or None.
        """
        frozen = None if self.slice is None else {"examples": len(self.slice), "epoch": self.slice_epoch}
        outcome = {"slice": frozen, "trend": list(self._trend), "verdict": self.verdict, "rolled_back": rolled_back}
        own = [{"verdict": entry["verdict"]} if "verdict" in entry else {} for entry in self.entries.values()]
        return tuple(entry | outcome | verdict for entry, verdict in zip(self.entries.values(), own, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the part of :class:`~.checkpoint.ControllerState` that this record holds."""
        return {
            "entries": dict(self.entries),
            "trend": list(self._trend),
            "slice": self.slice,
            "slice_epoch": self.slice_epoch,
            "verdict": self.verdict,
        } | ({} if self.slice_then is None else {"slice_then": self.slice_then})

    def load(self, saved: ControllerState, names: Mapping[str, str]) -> None:
        """Restore the state of a checkpoint.

        Args:
            saved: The state.
            names: Saved name -> name of today; entries of other interventions are dropped.
        """
        self.entries = {names[name]: entry for name, entry in saved.entries.items() if name in names}
        self._trend = list(saved.trend)
        self.slice, self.slice_epoch, self.slice_then = saved.slice, saved.slice_epoch, saved.slice_then
        self.verdict = saved.verdict


def split_note(report: FailureReport, parts: HeldOutParts) -> str:
    """Return the note about the parts of the validation set."""
    held_out = len(torch.unique(parts.report.grades.ids))
    deciding = len(torch.unique(parts.decision.grades.ids))
    note = (
        f"Interventions are on: all results here are of {report.examples} discovery examples; the keys report/ are of"
        f" {held_out} other examples, to which nothing was fitted."
    )
    if deciding:
        note += f" Another {deciding} examples are the decision part, used for selection and rollback."
    if parts.spent is not None:
        spent = len(torch.unique(parts.spent.grades.ids))
        note += f" Another {spent} examples are spent on the last layer, and in no number here."
    return note
