"""The protocol of a method: it is fitted on the examples of this process, and contributes to the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from lightning_failures.analysis.enrichment import Attribute
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.arrays import as_array
from lightning_failures.core.budget import Deadline
from lightning_failures.core.types import IntArray
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues, Values
from lightning_failures.data.partition import Partition
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.errors import DataError


@dataclass(frozen=True, eq=False)
class TrainingFeatures:
    """Penultimate features of training examples, on the first process; on the others there are none.

    Attributes:
        features: (M, D) floats: a matrix, or an iterable of blocks of rows that starts again each time. None: there are
            none.
        labels: (M,) int64, indices of the classes of the grades; in a multilabel task (M, K) of 0 and 1, or -1 where
            it is not known whether an example has the condition.
        total: Number of examples of the training set.
        problem: Why there are none; empty if there are.
        notes: Sentences for the notes of the report.
    """

    features: Any
    labels: IntArray
    total: int
    problem: str = ""
    notes: tuple[str, ...] = ()


TrainingReader = Callable[[Deadline | None], TrainingFeatures]
"""Reads penultimate features of training examples until a deadline, on all processes together. Collective."""


def as_training_reader(training: TrainingReader | tuple[Any, Any] | None) -> TrainingReader | None:
    """Return a reader of features (M, D) and labels, (M,) or (M, K), given as they are; a reader stays as it is.

    Raises:
        DataError: The labels have another shape or type.
    """
    if training is None or callable(training):
        return training
    features, labels = training
    targets = as_array(labels)
    if targets.ndim not in (1, 2) or not np.issubdtype(targets.dtype, np.integer):
        shapes = "(M,), or (M, K) of 0 and 1 in a multilabel task"
        raise DataError(
            f"labels of the training examples must be integers {shapes}; got {targets.dtype} {targets.shape}."
        )
    given = TrainingFeatures(features, targets.astype(np.int64), len(targets))
    return lambda deadline: given


@dataclass(frozen=True)
class FitTask:
    """The examples that one process fits a method on.

    Attributes:
        grades: N rows, the same in all processes.
        values: Embeddings or features of the rows that this process holds.
        partition: The classes that this process owns, and the exchange with the other processes.
        reference: (M, D) embeddings to standardise with, any part of the whole reference; None: ``values``.
        deadline: Time after which nothing more is fitted; None: no limit.
        seed: The only source of randomness.
        device: Device of large matrix products.
        raise_class_errors: Whether an error in the fit of a single class is raised, and costs more than this class.
        training: Reads the penultimate features of training examples; None: there are none.
        captions: Returns the embedded candidate captions of a class, by class index, or None; None: there are none.
        attributes: Known attributes of the N rows by name; nothing is fitted to them.
    """

    grades: Grades
    values: RowValues
    partition: Partition
    reference: Values | None = None
    deadline: Deadline | None = None
    seed: int = 0
    device: str | torch.device = "cpu"
    raise_class_errors: bool = False
    training: TrainingReader | None = None
    captions: Callable[[int], ClassCaptions | None] | None = None
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True)
class Contribution:
    """The result of a fitted method, the same in all processes.

    Attributes:
        fitted: The fitted object.
        summary: Aggregates that are logged, without the ``failures/`` prefix; undefined ones are absent.
        groups: Failure trees for the report.
        columns: Additional columns of the table of classes: K plain Python values each, None if undefined.
        section: Other findings for ``report.json``, as plain Python values.
        notes: Sentences for the notes of the report.
    """

    fitted: Any = None
    summary: Mapping[str, float] = field(default_factory=dict)
    groups: tuple[GroupReport, ...] = ()
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    section: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class FittableMethod(Protocol):
    """A method that :func:`~lightning_failures.analyse` can fit."""

    @property
    def name(self) -> str:
        """Key of the method's contribution, its timing and its section of the report."""
        ...

    @property
    def by_prediction(self) -> bool:
        """Whether the fit needs the rows predicted as a class, besides those labelled as the class."""
        ...

    def fit(self, task: FitTask) -> Contribution:
        """Fit the classes that this process owns, and combine the results of all processes. Collective."""
        ...
