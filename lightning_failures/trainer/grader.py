"""Grades of one evaluation loader: which examples are right, under which ids, classes, groups and metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.analysis.enrichment import MOST_VALUES, Attribute, read_attribute
from lightning_failures.analysis.metrics import GradesMetric, first_rows
from lightning_failures.data.class_names import ALL, unique_class_names
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.grading import (
    IGNORE_INDEX,
    UNLABELLED_REMEDY,
    VERDICT_REMEDY,
    Task,
    are_distributions,
    assemble_grades,
    check_not_nan,
    expand_class_names,
    impossible_conditions,
    infer_task,
    ungradable,
)
from lightning_failures.data.grouping import DEFAULT_GROUPINGS, MOST_CLUSTERS, Grouping, chosen_groupings
from lightning_failures.data.joining import has_digests
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.dataset_attributes import (
    dataset_attribute,
    dataset_class_names,
    dataset_length,
)
from lightning_failures.trainer.example_ids import EARLY_BATCHES, GivenIds, refuse_shared_ids
from lightning_failures.trainer.example_names import hashed_file_names
from lightning_failures.trainer.grading_facts import GradingFacts
from lightning_failures.trainer.left_out import LeftOut
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.readings import (
    VERDICTS,
    LogitsSource,
    Reading,
    ScoredBatch,
    disagreement,
    first_readings,
)


class Grader:
    """Grades the batches of one pass over a loader and assembles the grades of all ranks.

    Args:
        dataset: Dataset of the loader, for class names, groups and the number of examples; None if unknown.
        class_names: The user's class names, or None to read ``dataset.classes``.
        task: The task, or None to infer it from the first batch.
        ranks: The processes of the run.
        groups_from: Name of the dataset attribute that holds a source (a number or a name) for each example.
        metadata: Names of the dataset attributes whose values are counted among the failures.
        groupings: Names of the groupings of the failure trees.
        clusters_from: Name of the dataset attribute that holds a cluster (a number or a name) for each example.

    Attributes:
        facts: What was seen in the batches; after :meth:`grades`, in those of all processes.
        named: Whether the class names come from the user rather than from the dataset.
        look_like_probabilities: Whether scores in [0, 1] that have no name fit the labels better as such.
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
        groupings: Sequence[str] = DEFAULT_GROUPINGS,
        clusters_from: str | None = None,
    ) -> None:
        self.facts = GradingFacts()
        self.named = class_names is not None
        self.look_like_probabilities = False
        self._given_task: Task | None = task
        self._names = unique_class_names(class_names) if self.named else dataset_class_names(dataset)
        self._ranks = ranks
        self._dataset, self._expected = dataset, dataset_length(dataset)
        self._groups = None if groups_from is None else _group_of_each_example(dataset, groups_from)
        self._attributes = {name: _attribute_of_each_example(dataset, name) for name in metadata}
        self._groupings, self._clusters = groupings, None
        if clusters_from is not None:
            self._clusters = _attribute_of_each_example(dataset, clusters_from, "clusters_from", MOST_CLUSTERS)
        self._metrics: dict[Reading, GradesMetric] = {}
        self._given_ids, self._untraced, self._n_repeated = GivenIds(), False, 0
        self._unlabelled: list[Tensor] = []
        self._left_out = LeftOut(ranks)
        self._any_graded = False

    @property
    def reading(self) -> Reading | None:
        """How scores and labels are read, as far as is known; None before the first batch."""
        return self.facts.possible[0] if self.facts.possible else None

    @property
    def task(self) -> Task | None:
        """The task, as far as is known; None before the first batch if it is inferred."""
        return self._given_task if self.reading is None else self.reading.task

    @property
    def columns(self) -> int | None:
        """Number of logits per example; None before the first batch."""
        return self.facts.columns

    @property
    def indexed(self) -> bool:
        """Whether all ids seen so far are indices of the dataset."""
        return self.facts.indexed

    @property
    def logit_columns(self) -> int | None:
        """Number of logits per example; before the first batch the number of class names, if those are known."""
        if self.columns is not None:
            return self.columns
        return None if self._names is None else len(self._names)

    @property
    def problem(self) -> str | None:
        """The error of the first batch with examples or labels that could not be graded; None if there was none."""
        return self._left_out.problem

    @property
    def rows_per_example(self) -> int:
        """Number of rows that one example has in the grades: one per condition in a multilabel task, else one."""
        return self._rows_per_example(self.task)

    def _rows_per_example(self, task: Task | None) -> int:
        return self.columns or 1 if task == "multilabel" else 1

    @property
    def has_names(self) -> bool:
        """Whether the classes have names. Without names there are no captions."""
        return self._names is not None or not self.facts.labelled

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each class; "0" ... "K-1" if neither the user nor the dataset gives names."""
        if self.reading == VERDICTS:
            numbers = [str(k) for k in range(max(self.facts.largest_label + 1, 1))]
            return tuple(self._names or numbers) if self.facts.labelled else (ALL,)
        assert self.task is not None
        assert self.columns is not None
        names = self._names
        if names is None:
            classes = self.columns if self.task == "multilabel" else max(self.columns, 2)
            names = [str(k) for k in range(classes)]
        return expand_class_names(names, self.task)

    @property
    def repeats(self) -> str | None:
        """A warning about rows that were left out because their id had occurred; known after :meth:`grades`."""
        left_out = self._n_repeated // self.rows_per_example
        if not left_out:
            return None
        return (
            f"{left_out} examples have an id that had occurred before and are left out. If they are not repetitions,"
            " read_batch must give each example an id of its own."
        )

    def name_ids(self, ids: Tensor | None, drawn: Sequence[int] | None) -> Tensor | Sequence[int] | None:
        """Return the ids that the user gives for a batch, or else the dataset indices drawn for it.

        Raises:
            ConfigurationError: The ids are not dataset indices, but groups, metadata or clusters are found by index;
                or one id is given to examples with different indices.
        """
        if ids is None:
            return drawn
        self._given_ids.add(ids, drawn)
        if drawn is None or ids.tolist() != drawn:
            self.facts = replace(self.facts, indexed=False)
            by_index = {
                ("groups", "groups_from=None"): self._groups is not None,
                ("metadata", "metadata=()"): bool(self._attributes),
                ("clusters", "clusters_from=None"): self._clusters is not None,
            }
            if any(by_index.values()):
                needed, without = next(words for words, used in by_index.items() if used)
                raise ConfigurationError(
                    f"The ids of read_batch, or of the batches, are not known to be indices of the dataset, so its"
                    f" {needed} cannot be found by them. Leave ids None, or give {without}."
                )
        return ids

    def grade(
        self,
        logits: Tensor,
        labels: Tensor,
        ids: Sequence[int] | Tensor,
        *,
        digests: Tensor | None = None,
        source: LogitsSource = LogitsSource.STEP_OUTPUT,
        observed: Tensor | None = None,
    ) -> Tensor:
        """Grade one batch and return its ids (B,) int64 on the CPU.

        Args:
            logits: (B, K) or (B,) float, or (B,) int predicted classes.
            labels: (B,) or (B, K).
            ids: B integers.
            digests: (B,) int64, digests of the images; None if they are unknown.
            source: Where the logits come from.
            observed: The float scores that the step computed, if ``logits`` are predicted classes.

        Raises:
            ConfigurationError: The number of ids or of class names does not fit the batch, or labels name no class.
            DataError: No example of the batch, or so far, can be graded. One that cannot, among others, is left out.
        """
        # a model that squeezes its output drops the batch dimension of a batch of one
        logits, labels = (values.detach().cpu().reshape(values.shape or (1,)) for values in (logits, labels))
        batch = ScoredBatch(logits, labels, source, None if observed is None else observed.detach().cpu())
        # clone: a tensor that a loader worker sent keeps a file descriptor open for as long as it lives
        ids = torch.as_tensor(ids).long().cpu().reshape(-1).clone()
        if len(ids) != len(labels):
            raise ConfigurationError(
                f"The batch has {len(labels)} labels but {len(ids)} ids. Return the ids from read_batch."
            )
        try:
            self._add(batch, ids, digests)
        except DataError as error:
            scores = batch.scores if batch.soft_scores is None else batch.soft_scores
            task, classes = self.task or infer_task(scores, labels), len(self.class_names)
            reasons = ungradable(scores, labels, task, 2 if task == "binary" else classes)
            outside: Tensor | None = None
            if task == "multilabel" and labels.ndim == 2:  # an impossible label is like an unknown one, but noted
                outside = impossible_conditions(labels)
                batch = replace(batch, labels=labels.double().masked_fill(outside, torch.nan))
            gradable = self._left_out.add(reasons, ids, error, outside=outside, any_graded=self._any_graded)
            if gradable.any():
                self._add(batch.take(gradable), ids[gradable], None if digests is None else digests[gradable])
        return ids

    def _add(self, batch: ScoredBatch, ids: Tensor, digests: Tensor | None) -> None:
        """Grade examples and add their rows.

        Raises:
            DataError: One of them cannot be graded; none has been added.
        """
        rows_of = {reading: reading.grade(batch) for reading in self._possible_readings(batch)}
        rows = next(iter(rows_of.values()))
        if batch.are_classes and len(rows.labels) and int(rows.labels.max()) >= len(self.class_names):
            raise DataError(
                f"Labels run from {int(batch.labels.min())} to {int(batch.labels.max())}, but the"
                f" {len(self.class_names)} classes allow 0 to {len(self.class_names) - 1}. {UNLABELLED_REMEDY}"
            )
        for reading, graded in rows_of.items():
            row_digests = None if digests is None else digests[graded.position]
            if reading not in self._metrics:  # a metric takes longer to make than to update
                self._metrics[reading] = self._empty_metric(reading)
            row_ids = ids[graded.position]
            self._metrics[reading].update(
                row_ids, graded.labels.clone(), graded.predictions, graded.confidence, row_digests, graded.margin
            )
        self._check_early()
        self._any_graded = self._any_graded or len(rows.position) > 0
        unlabelled = torch.ones(len(ids), dtype=torch.bool)
        unlabelled[rows.position] = False
        if unlabelled.any():
            self._unlabelled.append(ids[unlabelled])
        largest = int(rows.labels.max()) if len(rows.labels) else -1
        self.facts = replace(self.facts, largest_label=max(self.facts.largest_label, largest))

    def last_confidence(self, ids: Tensor) -> Tensor:
        """Return the least probability of the truth in the last batch, by ids (B,): (B,) float, NaN where unknown."""
        metric = self._metric
        found: dict[int, float] = {}
        if metric is not None and metric.ids:
            certain = metric.confidence[-1]
            if self.reading == VERDICTS:
                certain = (metric.predictions[-1] == metric.labels[-1]).float()
            for row, value in zip(metric.ids[-1].tolist(), certain.tolist(), strict=True):
                found[row] = min(value, found.get(row, value))
        return torch.tensor([found.get(row, float("nan")) for row in ids.tolist()])

    def notes(self) -> tuple[str, ...]:
        """Return a sentence for each reason why examples have no grade, for the report. Collective."""
        return self._left_out.notes()

    def judge(
        self,
        correct: Tensor,
        labels: Tensor | None,
        ids: Sequence[int] | Tensor,
        *,
        digests: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:
        """Add the verdicts on one batch and return its ids (B,) int64 on the CPU.

        Args:
            correct: (B,) bool.
            labels: (B,) int, -100 for examples to skip; None: all examples are one group.
            ids: B integers.
            digests: (B,) int64, digests of the images; None if they are unknown.
            known: (B,) bool, the examples that have a verdict; None: all.

        Raises:
            ConfigurationError: Numbers do not fit, or only some batches have labels or verdicts.
            DataError: No label so far is in range. A label that is not, among others, leaves out its example.
        """
        labelled, mixed = labels is not None, "Some batches have {} and others do not."
        if self.reading not in (None, VERDICTS):
            raise ConfigurationError(mixed.format("verdicts"))
        classes = torch.zeros(len(correct), dtype=torch.int64) if labels is None else labels.long()
        ids = torch.as_tensor(ids).long().cpu().reshape(-1).clone()
        if len(ids) != len(correct):
            raise ConfigurationError(
                f"The batch has {len(correct)} verdicts but {len(ids)} ids. Return one id for each."
            )
        graded = classes != IGNORE_INDEX if known is None else (classes != IGNORE_INDEX) & known
        self._unlabelled.append(ids[~graded])
        if (labelled and not self.facts.labelled) or (not labelled and self.facts.labelled and self.facts.possible):
            raise ConfigurationError(mixed.format("labels"))
        outside = graded & (classes < 0)
        if labelled and self._names is not None:
            outside |= graded & (classes >= len(self._names))
        if outside.any():
            limits = "no negative classes" if self._names is None else f"{len(self._names)} class names"
            lowest, highest = int(classes[graded].min()), int(classes[graded].max())
            error = DataError(f"Labels run from {lowest} to {highest}, but there are {limits}. {UNLABELLED_REMEDY}")
            reasons = {"label without a class": outside}
            graded &= self._left_out.add(reasons, ids, error, any_graded=self._any_graded)
        self._any_graded = self._any_graded or bool(graded.any())
        largest = int(classes[graded].max()) if bool(graded.any()) else -1
        self.facts = replace(
            self.facts,
            possible=(VERDICTS,),
            sources=frozenset({LogitsSource.VERDICT}),
            labelled=labelled,
            largest_label=max(self.facts.largest_label, largest),
        )
        classes, right = classes[graded], correct.bool()[graded]
        predictions, row_digests = torch.where(right, classes, -1), None if digests is None else digests[graded]
        metric = self._metrics.setdefault(VERDICTS, self._empty_metric(VERDICTS))
        metric.update(ids[graded], classes.clone(), predictions, torch.zeros(len(classes)), row_digests)
        self._check_early()
        return ids

    def note_stacked(self, rows: int | None, examples: int) -> None:
        """Record that the step gave the model several copies of a batch; ``rows`` is None if it did not."""
        if rows is not None:
            self.facts = replace(self.facts, stacked=(rows, examples))

    def _possible_readings(self, batch: ScoredBatch) -> tuple[Reading, ...]:
        """Return the readings that this and all former batches allow, and record what the batch shows."""
        facts = self.facts
        if facts.columns is None:
            shaped = batch.scores if batch.soft_scores is None else batch.soft_scores
            columns = shaped.shape[1] if shaped.ndim == 2 else self._columns_of_predictions(shaped)
            facts = self.facts = replace(facts, columns=columns, possible=first_readings(batch, self._given_task))
            self._check_number_of_names()
        if batch.soft_scores is not None:
            check_not_nan(batch.soft_scores)  # before they rule out a reading
        possible = facts.possible
        if len(batch.labels):
            possible = tuple(reading for reading in possible if reading.fits(batch, self._given_task))
        if not possible:  # of another form than the former batches: grading it says what is wrong
            possible = facts.possible[-1:]
        if self.task == "binary" and batch.labels.is_floating_point() and bool((batch.labels > 1).any()):
            raise ConfigurationError(
                f"Labels run up to {float(batch.labels.max()):.4g}, but the model has one output, as in regression."
                f" {VERDICT_REMEDY}"
            )
        for gone in set(self._metrics) - set(possible):
            del self._metrics[gone]
        has_columns = batch.labels.ndim == 2 and batch.labels.shape[1] > 1
        self.facts = replace(
            facts,
            possible=possible,
            sources=facts.sources | {batch.source},
            fractions=_range_of_fractions(batch.labels, facts.fractions),
            disagreeing=facts.disagreeing + disagreement(batch, facts.possible),
            one_hot=facts.one_hot or has_columns,
            exclusive=facts.exclusive and (not has_columns or are_distributions(batch.labels)),
        )
        return possible

    def grades(self) -> Grades:
        """Return the grades of all ranks, each example once. Collective."""
        unlabelled = self._ranks.gather_objects(torch.cat([torch.empty(0, dtype=torch.int64), *self._unlabelled]))
        facts = GradingFacts()
        for some in self._ranks.gather_objects(self.facts):
            facts = facts.joined(some)
        self._untraced = any(self._ranks.gather_objects(self._given_ids.untraced))
        self._ranks.run_all(self._given_ids.check)
        (row_ids, labels, predictions, confidence, digests, margins), contradictions = self._decide(facts)
        if self._untraced:
            refuse_shared_ids(contradictions)
        self._n_repeated = sum(self._ranks.gather_objects(self._rows_repeated_here()))

        # numbers instead of ids: an id may be a hash, whose products exceed 64 bits
        ids, number = torch.unique(row_ids, return_inverse=True)
        self._left_out.check(examples=len(ids), rows=len(row_ids))
        seen = torch.unique(torch.cat([row_ids, *unlabelled]))
        conditions = self.rows_per_example
        grades = assemble_grades(
            number * conditions + (labels // 2 if conditions > 1 else 0),
            labels,
            predictions,
            confidence,
            class_names=self.class_names,
            conditions=conditions,
            groups=None if self._groups is None else self._groups[row_ids],
            coverage=1.0 if not self._expected else len(seen) / self._expected,
            digests=digests if has_digests(digests) else None,
            margin=margins,
        )
        grades = replace(grades, ids=ids[grades.ids])
        if self.reading == VERDICTS:
            return replace(grades, predictions=None, confidence=None, margin=None, verdicts=predictions == labels)
        return grades

    def _empty_metric(self, reading: Reading) -> GradesMetric:
        metric = GradesMetric(with_digests=True, with_margins=True, process_group=self._ranks.group)
        metric.multilabel = reading.task == "multilabel"
        return metric

    def _decide(self, facts: GradingFacts) -> tuple[tuple[Tensor, ...], int]:
        """Choose one reading for all batches of all ranks; return its rows and its contradictions. Collective."""
        self.facts, first = facts, next(iter(facts.possible), None)
        chosen = first or Reading(self._given_task or "multiclass", "logits")
        metric = self._metrics.get(chosen) or self._empty_metric(chosen)
        rows = metric.compute()
        found = rows, metric.contradictions
        raw = replace(chosen, scale="logits")
        if chosen.scale != "probabilities" or chosen.task == "multiclass" or raw not in facts.possible:
            return found
        if facts.sources == {LogitsSource.PREDS}:
            return found
        # the batches do not say whether scores in [0, 1] are probabilities, but labels fit one reading better
        metric = self._metrics.get(raw) or self._empty_metric(raw)
        other = metric.compute()
        self.look_like_probabilities = _log_likelihood(rows[3]) > _log_likelihood(other[3])
        if self.look_like_probabilities and LogitsSource.STEP_OUTPUT not in facts.sources:
            return found
        self.facts = replace(facts, possible=(raw,))
        return other, metric.contradictions

    @property
    def _metric(self) -> GradesMetric | None:
        """The rows of this rank by the reading that is preferred so far; None without any."""
        return None if self.reading is None else self._metrics.get(self.reading)

    def _first_rows(self) -> tuple[Tensor, int]:
        """Return the first row of each id on this rank, and the number of rows that contradict it."""
        metric = self._metric
        if metric is None:
            return torch.empty(0, dtype=torch.int64), 0
        columns = (torch.cat(column) for column in (metric.ids, metric.labels, metric.confidence))
        return first_rows(*columns, multilabel=metric.multilabel)

    def _check_early(self) -> None:
        """Refuse ids, in the first batches, that different examples share."""
        metric = self._metric
        if self._given_ids.untraced and metric is not None and len(metric.ids) <= EARLY_BATCHES:
            refuse_shared_ids(self._first_rows()[1])

    def _rows_repeated_here(self) -> int:
        """Return the number of rows of this rank whose id occurred before; other ranks may have the same examples."""
        metric = self._metric
        if metric is None or not self._untraced:
            return 0
        return sum(map(len, metric.ids)) - len(self._first_rows()[0])

    def metadata(self, grades: Grades) -> dict[str, Attribute]:
        """Return the requested metadata attributes of the rows of ``grades``, by name."""
        return {name: attribute[grades.ids.numpy()] for name, attribute in self._attributes.items()}

    def groupings(self, grades: Grades) -> tuple[Grouping, ...]:
        """Return the groupings of the failure trees, with the metadata and clusters of the rows of ``grades``."""
        clusters = None if self._clusters is None else self._clusters[grades.ids.numpy()]
        return chosen_groupings(self._groupings, self.metadata(grades), clusters)

    def with_names(self, table: ExampleTable) -> ExampleTable:
        """Return a table of these examples with their file names, if the dataset has some."""
        names = hashed_file_names(self._dataset, table.ids) if self.indexed else None
        return replace(table, names=names, indexed=self.indexed)

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
            in_classes = getattr(self._dataset, "features", None) is None
            of_dataset = "dataset.classes" if in_classes else "The class label among dataset.features"
            origin = "FailureModes(class_names=...)" if self.named else of_dataset
            raise ConfigurationError(
                f"{origin} has {len(self._names)} names, but the model has {self.columns} logits an example, which need"
                f" {' or '.join(map(str, allowed))}."
            )


def _range_of_fractions(labels: Tensor, known: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the smallest and the largest known label if any is a fraction, with those of former batches."""
    if not labels.is_floating_point():
        return known
    values = labels[(labels >= 0) & (labels <= 1)]  # others are unknown, such as -100
    if not bool((values != values.round()).any()):
        return known
    low, high = float(values.min()), float(values.max())
    return (low, high) if known is None else (min(low, known[0]), max(high, known[1]))


def _log_likelihood(confidence: Tensor) -> float:
    """Return the mean logarithm of (N,) probabilities of the truth."""
    return float(confidence.double().clamp(min=1e-7).log().mean()) if len(confidence) else 0.0


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


def _attribute_of_each_example(
    dataset: Any, name: str, option: str = "metadata", most_values: int = MOST_VALUES
) -> Attribute:
    """Return the values of one attribute for all examples of a dataset."""
    values, length = dataset_attribute(dataset, name), dataset_length(dataset)
    if values is None:
        problem = "is not there"
    else:
        try:
            attribute = read_attribute(values, name, most_values=most_values)
        except DataError as error:
            problem = f"cannot be counted: {error}"
        else:
            if length in (None, len(attribute)):
                return attribute
            problem = f"has {len(attribute)} values for {length} examples"
    raise ConfigurationError(
        f"DataOptions({option}=...): the attribute {name!r} of {type(dataset).__name__} {problem}. It must hold an"
        " integer, a string or a boolean for each example, None where it is not known."
    )
