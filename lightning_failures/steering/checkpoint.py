"""What the interventions keep in checkpoints, and how it is read again: every value checked, none guessed.

The state is plain values and tensors, so checkpoints load with ``weights_only=True``. Keys that were added since it was
written have a default, and keys of later versions are ignored; ``version`` grows when a key changes its meaning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_failures.core.serialization import from_jsonable
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.sampler import SamplingSchedule

VERSION = 1

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class _Entry:
    """What is needed of what an intervention decided."""

    kind: str
    options: dict[str, Any]
    epoch: int
    began: int | None
    changes_training: bool
    classes: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class ControllerState:
    """All that interventions keep from epoch to epoch.

    Attributes:
        draws: Of :class:`~lightning_failures.interventions.sampler.SamplingSchedule`.
        turns: For each intervention the number of its last decision.
        entries: For each intervention what it decided, as reports tell it.
        trend: The numbers of the report part after each epoch.
        slice: (m,) int64, the flagged ids, or None.
        slice_epoch: When they were flagged.
        verdict: A sentence, or what :meth:`Verdict.to_dict` gave.
        folder: Where interventions keep files.
        rollback: Of :class:`RollbackState`.
        lottery: Of :class:`RandomizedControlState`.
        version: Of this form.
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
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.version > VERSION:
            raise DataError(f"it is of version {self.version}, and this package knows {VERSION}")
        SamplingSchedule(0).load(self.draws)
        for entry in self.entries.values():
            from_jsonable(_Entry, entry)
        if not all(isinstance(point.get("epoch"), int) for point in self.trend):
            raise DataError("a point of the trend has no epoch")
        if self.slice is not None and (self.slice.ndim != 1 or self.slice.dtype != torch.int64):
            raise DataError(f"the slice is {self.slice.dtype} of shape {tuple(self.slice.shape)}")
        if not isinstance(self.verdict, str | Mapping):
            raise DataError(f"the verdict is a {type(self.verdict).__name__}")


@dataclass(frozen=True)
class RollbackState:
    """Of :class:`~lightning_failures.steering.rollback.Rollback`: what was right before, and whether it is undone."""

    before: dict[str, Tensor] | None
    file: str | None
    undone: dict[str, Any] | None
    pending: bool = False

    def __post_init__(self) -> None:
        shapes = [value.shape for key, value in sorted((self.before or {}).items()) if key in ("correct", "ids")]
        if self.before is not None and (len(shapes) != 2 or shapes[0] != shapes[1] or len(shapes[0]) != 1):
            raise DataError("what was right before the interventions is not known of each example")
        if self.pending and self.file is None:
            raise DataError("no file is named to go back to")


@dataclass(frozen=True)
class RandomizedControlState:
    """State of a randomized control: which classes are treated, and their accuracy before."""

    treated: dict[str, bool] | None
    before: tuple[float, ...]

    def __post_init__(self) -> None:
        classes = self.treated or {}
        if not all(key.isdecimal() for key in classes) or (self.before and len(self.before) != len(classes)):
            raise DataError("the lots do not fit the classes")


def read_steering(state: Any) -> ControllerState:
    """Read the state of interventions.

    Raises:
        ConfigurationError: It is damaged or of a later version, so that the training would go on differently.
    """
    try:
        return from_jsonable(ControllerState, state)
    except DataError as error:
        raise unreadable(error) from error


def unreadable(error: DataError) -> ConfigurationError:
    """The error of a state that cannot be read."""
    return ConfigurationError(
        f"The state of FailureModes(interventions=...) in this checkpoint cannot be read: {error}. Resume from another"
        " checkpoint, with the version of lightning_failures that wrote it, or without interventions."
    )
