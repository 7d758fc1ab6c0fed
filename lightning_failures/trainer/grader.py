"""Grades of one evaluation loader: which examples are right, under which ids, classes, groups and metadata."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.enrichment import Attribute, read_attribute
from lightning_failures.analysis.metrics import GradesMetric
from lightning_failures.core.text import listed_ids
from lightning_failures.data.grades import Grades
from lightning_failures.data.grading import (
    Task,
    assemble_grades,
    expand_class_names,
    grade_batch,
    infer_task,
    ungradable,
)
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.index_recorder import dataset_attribute, dataset_length
from lightning_failures.trainer.ranks import Communicator

MIN_LEFT_OUT = 8
"""Number of examples, the first of a pass, that may all be impossible to grade before their error is raised."""


class Grader:
    """Grades the batches of one pass over a loader and assembles the grades of all ranks.

    Args:
        dataset: Dataset of the loader, for class names, groups and the number of examples; None if unknown.
        class_names: The user's class names, or None to read ``dataset.classes``.
        task: The task, or None to infer it from the first batch.
        ranks: The processes of the run.
        groups_from: Name of the dataset attribute that holds a source (a number or a name) for each example.
        metadata: Names of the dataset attributes whose values are counted among the failures.

    Attributes:
        task: The task; None before the first batch if it is inferred.
        columns: Number of logits per example; None before the first batch.
        named: Whether the class names come from the user rather than from the dataset.
        indexed: Whether all ids seen so far are indices of the dataset.
        problem: The error of the first batch with examples that could not be graded; None if there was none.
    """

    def __init__(
        self,
        *,
        dataset: Any,
        class_names: Sequence[str] | None,
        task: Task | None,
        ranks: Communicator,
        groups_from: str | None = "groups",
        metadata: Sequence[str] = (),
    ) -> None:
        self.task = task
        self.named = class_names is not None
        self.columns: int | None = None
        self.indexed = True
        self._score_range = (math.inf, -math.inf)
        self._names = unique_class_names(class_names if self.named else dataset_attribute(dataset, "classes"))
        self._ranks = ranks
        self._expected = dataset_length(dataset)
        self._groups = None if groups_from is None else _group_of_each_example(dataset, groups_from)
        self._attributes = {name: _attribute_of_each_example(dataset, name) for name in metadata}
        self._metric = GradesMetric(process_group=ranks.group)
        self._unlabelled: list[Tensor] = []
        self._left_out: dict[str, set[int]] = {}  # by reason
        self.problem: str | None = None
        self._any_graded = False

    @property
    def logit_columns(self) -> int | None:
        """Number of logits per example; before the first batch the number of class names, if those are known."""
        if self.columns is not None:
            return self.columns
        return None if self._names is None else len(self._names)

    @property
    def rows_per_example(self) -> int:
        """Number of rows that one example has in the grades: one per condition in a multilabel task, else one."""
        return self.columns or 1 if self.task == "multilabel" else 1

    @property
    def has_names(self) -> bool:
        """Whether the classes have names. Without names there are no captions."""
        return self._names is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class; "0" ... "K-1" if neither the user nor the dataset gives names."""
        assert self.task is not None
        assert self.columns is not None
        names = self._names
        if names is None:
            classes = self.columns if self.task == "multilabel" else max(self.columns, 2)
            names = [str(k) for k in range(classes)]
        return expand_class_names(names, self.task)

    @property
    def doubt(self) -> str | None:
        """A warning if all scores of a binary or multilabel task lie in [0, 1], as raw scores hardly ever do."""
        low, high = self._score_range
        if not 0 <= low < high <= 1:
            return None
        return (
            f"All scores of this {self.task} task lie between 0 and 1, so each counts as positive. If they are"
            " probabilities, return {'preds': ...} from the step, or give read_batch for the logits."
        )

    def name_ids(self, ids: Tensor | None, drawn: Sequence[int] | None) -> Tensor | Sequence[int] | None:
        """Return the ids that the user gives for a batch, or else the dataset indices drawn for it.

        Raises:
            ConfigurationError: The ids are not dataset indices, but groups or metadata are found by index.
        """
        if ids is None:
            return drawn
        if drawn is None or ids.tolist() != drawn:
            self.indexed = False
            if self._groups is not None:
                raise ConfigurationError(
                    "FailureModes(read_batch=...) gives ids that are not known to be indices of the dataset, so its"
                    " groups cannot be found by them. Leave ids None, or give groups_from=None."
                )
            if self._attributes:
                raise ConfigurationError(
                    "FailureModes(read_batch=...) gives ids that are not known to be indices of the dataset, so its"
                    " metadata cannot be found by them. Leave ids None, or give metadata=()."
                )
        return ids

    def grade(self, logits: Tensor, labels: Tensor, ids: Sequence[int] | Tensor) -> Tensor:
        """Grade one batch and return its ids (B,) int64 on the CPU.

        Args:
            logits: (B, K) or (B,) float, or (B,) int predicted classes.
            labels: (B,) or (B, K).
            ids: B integers.

        Raises:
            ConfigurationError: The number of ids or of class names does not fit the batch.
            DataError: No example of the batch, or so far, can be graded. One that cannot, among others, is left out.
        """
        if self.task is None:
            self.task = infer_task(logits, labels)
        if self.columns is None:
            self.columns = logits.shape[1] if logits.ndim == 2 else self._columns_of_predictions(logits)
            self._check_number_of_names()
        # clone: a tensor that a loader worker sent keeps a file descriptor open for as long as it lives
        ids = torch.as_tensor(ids).long().cpu().reshape(-1).clone()
        if len(ids) != len(labels):
            raise ConfigurationError(
                f"The batch has {len(labels)} labels but {len(ids)} ids. Return the ids from read_batch."
            )
        try:
            self._add(logits, labels, ids)
        except DataError as error:
            gradable = self._gradable(logits, labels, ids, error)
            if gradable.any():
                self._add(logits[gradable.to(logits.device)], labels[gradable.to(labels.device)], ids[gradable])
        return ids

    def _add(self, logits: Tensor, labels: Tensor, ids: Tensor) -> None:
        """Grade examples and add their rows.

        Raises:
            DataError: One of them cannot be graded; none has been added.
        """
        rows = grade_batch(logits, labels, task=self.task)
        is_soft = logits.is_floating_point()
        if is_soft and self.task != "multiclass" and logits.numel():
            low, high = logits.detach().cpu().aminmax()
            self._score_range = min(self._score_range[0], float(low)), max(self._score_range[1], float(high))
        if not is_soft and len(rows.labels) and int(rows.labels.max()) >= len(self.class_names):
            raise DataError(
                f"Labels run from {int(labels.min())} to {int(labels.max())}, but the {len(self.class_names)} classes"
                f" allow 0 to {len(self.class_names) - 1}."
            )
        row_keys = ids[rows.position] * self.rows_per_example + rows.condition
        self._metric.update(row_keys, rows.labels.clone(), rows.predictions, rows.confidence)
        self._any_graded = self._any_graded or len(rows.position) > 0
        unlabelled = torch.ones(len(ids), dtype=torch.bool)
        unlabelled[rows.position] = False
        if unlabelled.any():
            self._unlabelled.append(ids[unlabelled])

    def _gradable(self, logits: Tensor, labels: Tensor, ids: Tensor, error: DataError) -> Tensor:
        """Return which examples of a batch that raised an error can be graded, (B,) bool, and record the others.

        Raises:
            DataError: The error is not one of single examples, or no example could be graded so far.
        """
        assert self.task is not None
        reasons = ungradable(logits, labels, self.task, 2 if self.task == "binary" else len(self.class_names))
        gradable = torch.ones(len(ids), dtype=torch.bool)
        for reason, rows in reasons.items():
            self._left_out.setdefault(reason, set()).update(ids[rows].tolist())
            gradable &= ~rows
        n_left_out = len(set().union(*self._left_out.values()))
        if gradable.all() or (not self._any_graded and not gradable.any() and n_left_out >= MIN_LEFT_OUT):
            raise error
        self.problem = self.problem or str(error)
        return gradable

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each reason why examples have no grade, for the report. Collective."""
        return tuple(
            f"{len(ids)} example{'s' if len(ids) > 1 else ''} could not be graded ({reason}): {listed_ids(ids)}."
            for reason, ids in self._gathered_left_out().items()
        )

    def _gathered_left_out(self) -> dict[str, set[int]]:
        """Return the ids of the examples that could not be graded on any rank, by reason. Collective."""
        gathered: dict[str, set[int]] = {}
        for part in self._ranks.gather_objects(self._left_out):
            for reason, ids in part.items():
                gathered.setdefault(reason, set()).update(ids)
        return gathered

    def _check_left_out(self, graded: int) -> None:
        """Raise the error of the first batch that had one if at least half of the examples are left out. Collective."""
        n_left_out = len(set().union(*self._gathered_left_out().values()))
        problem = next(filter(None, self._ranks.gather_objects(self.problem)), None)
        if problem is not None and n_left_out >= graded:
            raise DataError(f"{n_left_out} of {n_left_out + graded} examples cannot be graded. {problem}")

    def grades(self) -> Grades:
        """Return the grades of all ranks, each example once. Collective."""
        unlabelled = self._ranks.gather_objects(torch.cat([torch.empty(0, dtype=torch.int64), *self._unlabelled]))
        row_keys, labels, predictions, confidence = self._metric.compute()
        self._synchronize_task()
        ids = row_keys // self.rows_per_example
        self._check_left_out(len(torch.unique(ids)))
        seen = torch.unique(torch.cat([ids, *unlabelled]))
        return assemble_grades(
            row_keys,
            labels,
            predictions,
            confidence,
            class_names=self.class_names,
            conditions=self.rows_per_example,
            groups=None if self._groups is None else self._groups[ids],
            coverage=1.0 if not self._expected else len(seen) / self._expected,
        )

    def metadata(self, grades: Grades) -> dict[str, Attribute]:
        """Return the requested metadata attributes of the rows of ``grades``, by name."""
        return {name: attribute[grades.ids.numpy()] for name, attribute in self._attributes.items()}

    def _synchronize_task(self) -> None:
        """Adopt the task from another rank if this one has seen no batch; ids are indices if they are on all ranks."""
        states = self._ranks.gather_objects((self.task, self.columns, self.indexed))
        self.task, self.columns, _ = next((state for state in states if state[1] is not None), states[0])
        self.indexed = all(indexed for _, _, indexed in states)

    def _columns_of_predictions(self, logits: Tensor) -> int:
        """Return the number of logits, or of classes, if the step gives one value per example."""
        if logits.is_floating_point():
            return 1
        if self._names is None:
            raise ConfigurationError(
                "The step returns predicted classes but no logits, so the number of classes is unknown: give"
                " class_names."
            )
        return len(self._names)

    def _check_number_of_names(self) -> None:
        if self._names is None:
            return
        assert self.columns is not None
        allowed = (1, 2) if self.columns == 1 else (self.columns,)
        if len(self._names) not in allowed:
            origin = "FailureModes(class_names=...)" if self.named else "dataset.classes"
            raise ConfigurationError(
                f"{origin} has {len(self._names)} names, but the model has {self.columns} logits an example, which need"
                f" {' or '.join(map(str, allowed))}."
            )


def unique_class_names(names: Any) -> list[str] | None:
    """Return the class names as distinct texts: the first of several synonyms, with the index if two classes share it.

    >>> unique_class_names(["crane", ("cat", "kitty"), "crane"])
    ['crane (0)', 'cat', 'crane (2)']
    """
    if not isinstance(names, Sequence | np.ndarray):
        return None
    texts = [str(name[0] if isinstance(name, tuple | list) and name else name) for name in names]
    count = Counter(texts)
    return [f"{text} ({k})" if count[text] > 1 else text for k, text in enumerate(texts)]


def _group_of_each_example(dataset: Any, attribute: str) -> Tensor | None:
    """Return the source of each example (N,) int64; sources that are names are numbered."""
    groups = dataset_attribute(dataset, attribute)
    if groups is None:
        return None
    values, length = np.asarray(groups), dataset_length(dataset)
    if values.ndim != 1 or values.dtype == object or length not in (None, len(values)):
        raise ConfigurationError(
            f"DataOptions(groups_from={attribute!r}): this attribute of {type(dataset).__name__} must hold an integer"
            f" or a string for each of its {length} examples, but is a {type(groups).__name__} of shape {values.shape}."
            " Name another attribute, or None for no groups."
        )
    numbers = values if values.dtype.kind == "i" else np.unique(values, return_inverse=True)[1]
    return torch.from_numpy(numbers).long()


def _attribute_of_each_example(dataset: Any, name: str) -> Attribute:
    """Return the values of one metadata attribute for all examples of a dataset."""
    values, length = dataset_attribute(dataset, name), dataset_length(dataset)
    if values is None:
        problem = "is not there"
    else:
        try:
            attribute = read_attribute(values, name)
        except DataError as error:
            problem = f"cannot be counted: {error}"
        else:
            if length in (None, len(attribute)):
                return attribute
            problem = f"has {len(attribute)} values for {length} examples"
    raise ConfigurationError(
        f"DataOptions(metadata=...): the attribute {name!r} of {type(dataset).__name__} {problem}. It must hold an"
        " integer, a string or a boolean for each example, None where it is not known."
    )
