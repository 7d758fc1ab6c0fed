"""What an analysis asks of a method: a fit on the examples of this process, and a contribution to the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from lightning_failures.core.budget import Deadline
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues, Values
from lightning_failures.data.partition import Partition
from lightning_failures.data.report import GroupReport


@dataclass(frozen=True)
class FitTask:
    """The examples that one process fits a method on.

    Attributes:
        grades: N rows, the same in all processes.
        values: Embeddings or features of the rows that this process holds.
        partition: The classes that this process owns, and the exchange with the other processes.
        reference: (M, D) embeddings for standardising, any part of the whole; None: ``values``.
        deadline: What comes after it is left out; None: no limit.
        seed: The only source of randomness.
        device: Device of large matrix products.
    """

    grades: Grades
    values: RowValues
    partition: Partition
    reference: Values | None = None
    deadline: Deadline | None = None
    seed: int = 0
    device: str | torch.device = "cpu"


@dataclass(frozen=True)
class Contribution:
    """The result of a fitted method, the same in all processes.

    Attributes:
        fitted: The fitted object.
        summary: Aggregates that are logged, without the ``failures/`` prefix; undefined ones are absent.
        groups: Failure trees of the report.
        columns: Additional columns of the table of classes: K values each, plain Python values, None if undefined.
        section: Anything else for ``report.json``, plain Python values.
        notes: Sentences for the notes of the report.
    """

    fitted: Any = None
    summary: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[GroupReport, ...] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    section: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class FittableMethod(Protocol):
    """A method as :func:`~lightning_failures.analyse` fits it."""

    @property
    def name(self) -> str:
        """Key of its contribution, its timing and its section of the report."""
        ...

    @property
    def by_prediction(self) -> bool:
        """Whether the rows of a class are also those predicted as the class, not only those labelled so."""
        ...

    def fit(self, task: FitTask) -> Contribution:
        """Fit on the classes that this process owns, and combine with the other processes. Collective."""
        ...
