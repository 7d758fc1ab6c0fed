"""State of the interventions in checkpoints: its fields, and how they are validated on reading.

The state consists of plain values and tensors, so checkpoints load with ``weights_only=True``. Fields added since a
checkpoint was written have a default, and fields of later versions are ignored; ``version`` grows when the meaning of a
field changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from lightning_failures.core.serialization import from_jsonable
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.sampler import SamplingSchedule

VERSION = 1

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class _Entry:
    """The fields of an intervention's entry in the report that a resumed run needs."""

    kind: str
    options: dict[str, Any]
    epoch: int
    began: int | None
    changes_training: bool
    classes: tuple[dict[str, Any], ...]
    pool_digest: int | None = None


@dataclass(frozen=True)
class ControllerState:
    """The state of all interventions.

    Attributes:
        draws: State of :class:`~lightning_failures.interventions.sampler.SamplingSchedule`.
        turns: Name of an intervention -> index of its last decision.
        entries: Name of an intervention -> its entry in the report.
        trend: Headline numbers of the report part after each epoch.
        slice: (m,) int64, ids of the frozen slice, or None.
        slice_epoch: Epoch in which they were flagged.
        slice_then: What was known of them then, see :class:`~.record.InterventionRecord`; None in former versions.
        verdict: A sentence, or the result of :meth:`Verdict.to_dict`.
        folder: Folder for files of the interventions.
        rollback: :class:`RollbackState` as plain values.
        lottery: :class:`RandomizedControlState` as plain values.
        folder_names: Name of an intervention -> name of its folder, where they differ.
        new_heads: Name of an intervention -> ``head``, ``weight`` (K, D) and ``bias`` (K,) of the last layer that takes
            effect in the next epoch.
        early: Name of an intervention -> ``epoch``, ``confidence`` (N,) and ``wrong`` (N,) of the answers of an early
            epoch.
        version: Version of this format.
    """

    draws: dict[str, Any]
    turns: dict[str, int]
    entries: dict[str, dict[str, Any]]
    trend: tuple[dict[str, Any], ...]
    slice: Tensor | None
    slice_epoch: int | None
    verdict: Any = NOT_MEASURED
    folder: str | None = None
    rollback: dict[str, Any] | None = None
    lottery: dict[str, Any] | None = None
    slice_then: dict[str, Tensor] | None = None
    folder_names: dict[str, str] = field(default_factory=dict)
    new_heads: dict[str, dict[str, Any]] = field(default_factory=dict)
    early: dict[str, dict[str, Any]] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version > VERSION:
            raise DataError(f"its version is {self.version}, and this package reads versions up to {VERSION}")
        SamplingSchedule(0).load(self.draws)
        for entry in self.entries.values():
            from_jsonable(_Entry, entry)
        if not all(isinstance(point.get("epoch"), int) for point in self.trend):
            raise DataError("a point of the trend has no epoch")
        if self.slice is not None and (self.slice.ndim != 1 or self.slice.dtype != torch.int64):
            raise DataError(f"the slice is {self.slice.dtype} of shape {tuple(self.slice.shape)}")
        if self.slice_then is not None:
            columns = {"failed": torch.bool, "in_report": torch.bool, "digests": torch.int64}
            _check_columns(self.slice_then, columns, optional={"digests"}, like=self.slice, owner="the slice")
        for new in self.new_heads.values():
            weight: Any = new.get("weight")
            bias: Any = new.get("bias")
            are_tensors = isinstance(weight, Tensor) and isinstance(bias, Tensor)
            if not are_tensors or "head" not in new or weight.ndim != 2 or bias.shape != weight.shape[:1]:
                raise DataError("the weights of a new last layer are missing or have another form")
        for answers in self.early.values():
            columns = {"wrong": torch.bool, "confidence": torch.float32}
            _check_columns(answers, columns, like=answers.get("wrong"), owner="the answers of an early epoch")
            if not isinstance(answers.get("epoch"), int):
                raise DataError("the answers of an early epoch have no epoch")
        if not isinstance(self.verdict, str | Mapping):
            raise DataError(f"the verdict is a {type(self.verdict).__name__}")


@dataclass(frozen=True)
class RollbackState:
    """State of :class:`~lightning_failures.steering.rollback.Rollback`.

    Attributes:
        before: ``ids`` (n,), ``correct`` (n,) and, if they are known, ``digests`` (n,) of the decision part before the
            interventions, or None.
        file: File with weights and optimizers.
        undone: Epoch and reason of the rollback, or None.
        pending: Whether the weights are restored before the next epoch.
        earlier: The same as ``before`` for validations before that one, the oldest first.
        since: The same for the last validations since the interventions began.
        looks: Number of validations since the interventions began.
    """

    before: dict[str, Tensor] | None
    file: str | None
    undone: dict[str, Any] | None
    pending: bool = False
    earlier: tuple[dict[str, Tensor], ...] = ()
    since: tuple[dict[str, Tensor], ...] = ()
    looks: int = 0

    def __post_init__(self) -> None:
        for look in (*self.earlier, *(() if self.before is None else (self.before,)), *self.since):
            if "digests" in look:
                _check_columns(look, {"digests": torch.int64}, like=look.get("ids"))
            shapes = [value.shape for key, value in sorted(look.items()) if key in ("correct", "ids")]
            if len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 1:
                raise DataError("the ids and grades from before the interventions do not match")
        if self.looks < len(self.since):
            raise DataError("the number of looks since the interventions began is too small")
        if self.pending and self.file is None:
            raise DataError("a rollback is pending, but there is no file with the weights")


@dataclass(frozen=True)
class RandomizedControlState:
    """State of :class:`~lightning_failures.steering.lottery.RandomizedControl`.

    Attributes:
        treated: Class index as text -> whether the class is treated; None before the assignment.
        before: Accuracy of these classes before the intervention began.
        members: ``ids``, ``labels``, ``correct`` and, if they are known, ``digests`` of the examples of the slice at
            that time, (m,) each; None in former versions.
    """

    treated: dict[str, bool] | None
    before: tuple[float, ...]
    members: dict[str, Tensor] | None = None

    def __post_init__(self) -> None:
        classes = self.treated or {}
        if not all(key.isdecimal() for key in classes) or (self.before and len(self.before) != len(classes)):
            raise DataError("the random assignment does not match the classes")
        if self.members is not None:
            columns = {"ids": torch.int64, "labels": torch.int64, "correct": torch.bool, "digests": torch.int64}
            _check_columns(self.members, columns, optional={"digests"}, like=self.members.get("ids"))


def _check_columns(
    found: Mapping[str, Any],
    columns: Mapping[str, torch.dtype],
    *,
    like: Tensor | None,
    optional: Collection[str] = (),
    owner: str = "the memory of examples",
) -> None:
    """Raise an error for columns that lack, or have another type or another length than ``like``."""
    for name, dtype in columns.items():
        column = found.get(name)
        if column is None and name in optional:
            continue
        if column is None or like is None or column.shape != like.shape or column.ndim != 1 or column.dtype != dtype:
            raise DataError(f"{name} of {owner} is missing or has another form than its ids")


def read_steering(state: Any) -> ControllerState:
    """Read the state of the interventions.

    Raises:
        ConfigurationError: The state is damaged or of a later version, so the training would continue differently.
    """
    try:
        return from_jsonable(ControllerState, state)
    except DataError as error:
        raise unreadable(error) from error


def unreadable(error: DataError) -> ConfigurationError:
    """Return the error for a state that cannot be read, with the remedies."""
    return ConfigurationError(
        f"The state of FailureModes(interventions=...) in this checkpoint cannot be read: {error}. Resume from another"
        " checkpoint, with the version of lightning_failures that wrote it, or without interventions."
    )


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint. Collective."""
    try:
        trainer.save_checkpoint(path)
    except Exception:
        # ranks that write nothing wait at this barrier of save_checkpoint
        trainer.strategy.barrier("Trainer.save_checkpoint")
        raise
