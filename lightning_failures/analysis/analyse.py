"""From grades and embeddings to a report: the whole analysis, without a Trainer, a logger or a disk.

The analysis runs in a notebook as in the callback. Its steps follow the questions of a user: which classes fail by a
pattern (directions), how that pattern reads in words (captions), and which rules on robust features describe the
failures (trees). Several processes may share an analysis: each fits the classes that it owns, and all return the same
report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np
import torch

from lightning_failures.analysis.class_reports import class_reports, failed_fits
from lightning_failures.analysis.confusions import add_confusions
from lightning_failures.analysis.copies import join_sources_of_copies
from lightning_failures.analysis.diagnosis import TrainingExamples, add_diagnoses
from lightning_failures.analysis.enrichment import MOST_VALUES, Attribute, enrichment, read_attribute
from lightning_failures.analysis.findings import FindingExamples, find_findings
from lightning_failures.analysis.fits import DirectionsFit, TreesFit, defined_numbers, mean_of
from lightning_failures.analysis.method import (
    Contribution,
    FittableMethod,
    FitTask,
    TrainingReader,
    as_training_reader,
)
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.analysis.shared import SharedFinding, find_shared_pattern
from lightning_failures.analysis.slices import leading_slices, slices_of
from lightning_failures.analysis.sparse_layers import SparseFit
from lightning_failures.captions.assign import CaptionScorer, caption_classes, classes_to_caption
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.arrays import as_array, as_rows, finite_rows_of
from lightning_failures.core.budget import SKIPPED_FOR_TIME, Deadline
from lightning_failures.core.text import listed_ids
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades, checked_grades
from lightning_failures.data.grouping import DEFAULT_GROUPINGS, LABEL, MOST_CLUSTERS, Grouping, chosen_groupings
from lightning_failures.data.members import RowValues, Values, members_of
from lightning_failures.data.partition import SINGLE_PROCESS, Partition, Workers
from lightning_failures.data.records import ValueReport
from lightning_failures.data.report import ClassReport, FailureReport, SliceReport
from lightning_failures.data.tree_report import GroupReport
from lightning_failures.directions.fit import Doubted
from lightning_failures.directions.null_scores import CLASSES_WITH_NULL_SCORES, add_null_cv_scores
from lightning_failures.directions.result import FailureDirections
from lightning_failures.trees.fit import FailureTree

_VALUES_NAMES = {"directions": "embeddings", "trees": "features"}
"""Names, in messages, of the values that the built-in methods are fitted on."""

_TITLES = {"directions": "Failure directions", "trees": "Failure trees", "sparse": "Sparse decision layers"}


def analyse(
    grades: Grades,
    embeddings: Values | None = None,
    *,
    features: Values | None = None,
    penultimate: Values | None = None,
    penultimate_training: TrainingReader | tuple[Any, Any] | None = None,
    reference: Values | None = None,
    training_labels: Any = None,
    captions: Callable[[int], ClassCaptions | None] | None = None,
    attribute_captions: Callable[[int], ClassCaptions | None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    groupings: Sequence[str | Grouping] = DEFAULT_GROUPINGS,
    clusters: Any = None,
    sampled: Any = None,
    permutations: int = 999,
    n_directions: int = 1,
    doubted: Doubted = "failures",
    top_captions: int = 5,
    top_examples: int = 8,
    captioned_classes: int = 50,
    delta: float = 0.1,
    tau: float = 0.2,
    cv_permutations: int = 0,
    time_budget: float | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    workers: Workers = SINGLE_PROCESS,
    methods: Sequence[tuple[FittableMethod, Values]] = (),
    attempt: Callable[[str], AbstractContextManager[Any]] = nullcontext,
    raise_class_errors: bool = False,
) -> AnalysisResult:
    """Analyse the failures of one evaluation.

    An example whose embedding or features are not finite (NaN where there are none) leaves only the fit of that method:
    its grade counts, the other method keeps it, and the notes of the report name it. A class whose direction cannot be
    fitted, a group whose tree cannot be grown, and a class whose captions cannot be scored have none, and a note says
    why. If all of them fail, the error is raised.

    Args:
        grades: Labels and predictions; N rows.
        embeddings: (N, D) float, in the order of the rows of ``grades``; or (U, D), one row for each of the U distinct
            ids, ascending. Examples with exactly equal rows are copies of one image: they are one source, as if
            ``grades.groups`` said so. None: no directions. Large embeddings may be float16 and memory-mapped: they are
            read one class at a time, never copied as a whole, and never written to.
        features: Features of an adversarially robust model, (N, F) or (U, F), aligned like ``embeddings``. None: no
            trees.
        penultimate: Penultimate features of the model itself, (N, P) or (U, P), aligned like ``embeddings``: the input
            of its last layer. A sparse decision layer is then examined on them, and ``.fitted["sparse"]`` holds the
            layer and the problematic feature of each error; in a multilabel task there is a layer for each condition.
            None: no sparse layer.
        penultimate_training: Penultimate features (M, P) of training examples, a matrix or an iterable of blocks that
            starts again each time, and their labels (M,) int, to which the sparse layer is fitted; in a multilabel task
            (M, K) of 0, 1 and -1, which is unknown. Or a function that reads them. None: the layer is fitted to half of
            the examples and examined on the other half.
        reference: (M, D) embeddings whose mean and standard deviation phi standardises with. None: ``embeddings``.
        training_labels: (M,) int, the labels of ``reference``, if that holds training examples: the diagnosis of each
            class compares them with the examples that are analysed. None: the diagnosis knows validation only.
        captions: Returns the embedded candidate captions of a class, by class index, or None; see
            :func:`~lightning_failures.captions.candidates.caption_source`. Called only for classes with a direction.
        attribute_captions: The same for captions that name one attribute each, which describe the pattern that all
            classes share; see :func:`~lightning_failures.captions.candidates.attribute_source`.
        metadata: Known attributes of the examples, by name: (N,) or (U,) integers, strings or booleans, aligned like
            ``embeddings``; see :func:`~lightning_failures.analysis.enrichment.read_attribute`. Nothing is fitted to
            them: the report of each class counts every value among all examples, the failures and the flagged, and
            compares the error rates of the examples with and without it.
        groupings: How examples are divided into groups, each with a tree: names out of "label", "prediction", "pair"
            (confused pairs), "union" (label or prediction is the class) and "metadata" (each value); see
            :mod:`lightning_failures.data.grouping`.
        clusters: (N,) or (U,) integers or strings, aligned like ``embeddings``: clusters that get a tree each. None
            among them: in no cluster.
        sampled: (N,) bool, the rows that directions and trees analyse; ``embeddings`` and ``features`` hold only these
            rows. Numbers of examples and accuracies still cover all rows. None: every row.
        permutations: Number of permutations of the screening test and of the test of captions.
        n_directions: Maximum number of directions per class.
        doubted: Which examples leave the fit of directions if a cross-fitted probe doubts their label: ``"failures"``,
            all ``"examples"``, or None.
        top_captions: Number of hardest and of easiest captions that a class keeps.
        top_examples: Number of hardest, easiest and least confident examples that a class keeps.
        captioned_classes: Maximum number of classes with captions: those with a pattern first, by ascending accuracy.
        delta: Minimum excess of a valid leaf's error rate over the base error rate, in [0, 1].
        tau: Minimum error coverage of a valid leaf, in [0, 1].
        cv_permutations: Number of permutations of correctness for the null distribution of CV scores, computed for 10
            classes: those with a pattern first, by ascending accuracy. Each permutation takes a fit; 20 take as long as
            the rest of the analysis. 0: no null scores.
        time_budget: Time limit in seconds. No direction is started after half of it (four fifths if no other method
            follows), no tree after four fifths, and no captions or null scores after all of it. Classes with the most
            failures come first; the notes of the report say what was skipped. None: no limit.
        seed: The only source of randomness.
        device: Device of Gram matrices, of products with permuted correctness, and of sparse layers. The rest runs on
            the CPU.
        workers: The processes that share the analysis. Each passes the same grades. Its ``embeddings`` have one row per
            distinct id among the rows of the classes that it owns
            (:func:`~lightning_failures.data.partition.owned_rows`; for ``features`` with ``predicted=True``), and its
            ``reference`` is any part of the whole reference. All return the same report.
        methods: Additional methods, each with its values, aligned like ``embeddings`` (or like ``features`` if the
            method is ``by_prediction``).
        attempt: Called with the name of each method; returns the context in which it is fitted. A context that
            suppresses an error leaves the method out of the report. By default errors are raised.
        raise_class_errors: Raise an error in the fit of a single class or group, and errors of the text encoder.

    Returns:
        The report, with the fitted ``.directions`` and ``.trees``.

    Raises:
        DataError: The grades are inconsistent, the number of rows does not match them, or metadata cannot be counted.
        ConfigurationError: The groupings are unknown, or need what is not given.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(300, 8, generator=generator)
    >>> failed = x[:, 0] + 0.5 * torch.randn(300, generator=generator) < -0.5
    >>> grades = Grades(torch.arange(300), torch.zeros(300).long(), failed.long(), torch.ones(300), ("cat", "dog"))
    >>> result = analyse(grades, x)
    >>> result["classes"][0]["pattern"], result["classes"][1]["skipped"]
    (True, 'no examples')
    """
    grades = checked_grades(grades)
    partition = Partition.of(grades, sampled, workers)
    attributes = _attributes(metadata, grades)
    deadlines = _Deadlines.of(time_budget)
    timings: dict[str, float] = {}

    # fit every method: directions, trees, then additional ones
    fits: list[tuple[FittableMethod, Values]] = []
    if embeddings is not None:
        fits.append((DirectionsFit(n_directions, permutations, doubted), embeddings))
    if features is not None:
        clustered = None if clusters is None else _attributes({"clusters": clusters}, grades, MOST_CLUSTERS)["clusters"]
        fits.append((TreesFit(delta, tau, chosen_groupings(groupings, attributes, clustered)), features))
    if penultimate is not None:
        fits.append((SparseFit(), penultimate))
    fits += methods

    read_training = as_training_reader(penultimate_training)

    # copies of one image are one source, like the images of one group
    copies = 0
    if embeddings is not None:
        held = RowValues.of(embeddings, grades, partition.rows, "embeddings")
        grades, copies = join_sources_of_copies(grades, held, partition)

    contributions: dict[str, Contribution] = {}
    examples: dict[str, _FittedExamples] = {}
    for index, (method, values) in enumerate(fits):
        others_follow = index < len(fits) - 1
        with attempt(method.name), _timed(timings, method.name):
            mine = _fitted_examples(method, values, grades, partition)
            task = FitTask(
                grades,
                mine.values,
                mine.partition,
                reference=_finite_reference(reference),
                deadline=deadlines.directions if method.name == "directions" and others_follow else deadlines.methods,
                seed=seed,
                device=device,
                raise_class_errors=raise_class_errors,
                training=read_training,
                captions=captions,
                attributes=attributes,
            )
            contribution = method.fit(task)
            examples[method.name], contributions[method.name] = mine, contribution

    # report every class
    directions: FailureDirections | None = _fitted(contributions, "directions", None)
    trees: dict[tuple[str, str], FailureTree] = _fitted(contributions, "trees", {})
    analysed = _analysed_rows(examples, partition)
    groups = contributions["trees"].groups if "trees" in contributions else ()
    classes = class_reports(grades, directions, trees, groups, analysed, top_examples)
    n_uncaptioned = n_without_null_scores = 0
    caption_notes: tuple[str, ...] = ()
    null_notes: tuple[str, ...] = ()
    if directions is not None:
        sampled_members = members_of(grades, sampled=analysed)
        embedded = examples["directions"].values
        if captions is not None:
            with _timed(timings, "captions"):
                classes, n_uncaptioned, caption_notes = caption_classes(
                    classes,
                    captions,
                    CaptionScorer(
                        directions, sampled_members, embedded, top_captions, permutations, seed, attributes, device
                    ),
                    classes_to_caption(classes, captioned_classes),
                    partition,
                    deadline=deadlines.everything,
                    raise_errors=raise_class_errors,
                )
        if cv_permutations:
            with _timed(timings, "cv_nulls"):
                classes, n_without_null_scores, null_notes = add_null_cv_scores(
                    classes,
                    directions,
                    sampled_members,
                    embedded,
                    classes_to_caption(classes, CLASSES_WITH_NULL_SCORES),
                    partition,
                    permutations=cv_permutations,
                    seed=seed,
                    device=device,
                    deadline=deadlines.everything,
                    raise_errors=raise_class_errors,
                )
    shared = SharedFinding()
    if directions is not None:
        with _timed(timings, "shared"):
            shared = find_shared_pattern(
                grades,
                directions,
                examples["directions"].values,
                examples["directions"].partition,
                attributes,
                attribute_captions,
                permutations=permutations,
                seed=seed,
                top=top_examples,
                top_captions=top_captions,
                deadline=deadlines.everything,
                raise_errors=raise_class_errors,
            )
    with _timed(timings, "confusions"):
        classes, confusions = add_confusions(classes, grades, directions, partition, seed)
    if directions is not None:
        with _timed(timings, "diagnosis"):
            training = _training_examples(reference, training_labels, directions, partition)
            classes = add_diagnoses(
                classes, grades, directions, examples["directions"].values, examples["directions"].partition, training
            )
    slices: tuple[SliceReport, ...] = ()
    if attributes:
        with _timed(timings, "enrichment"):
            classes = _enrich(classes, attributes, grades, directions, partition)
        with _timed(timings, "slices"):
            classes, slices = _slice(classes, attributes, grades, partition)
    notes = _notes(classes, contributions, n_uncaptioned, n_without_null_scores, _sampled_share(partition), copies)
    notes = (*notes, *_left_out_notes(examples, grades, partition), *caption_notes, *null_notes, *shared.notes)
    result = _result(grades, partition, classes, contributions, timings, notes, copies)
    summary = result.report.summary | shared.summary
    result = result.with_report(slices=slices, confusions=confusions, shared=shared.pattern, summary=summary)
    result = replace(result, shared=shared.direction)
    with _timed(timings, "findings"):
        findings = find_findings(result.report, _finding_examples(grades, result, attributes))
    return result.with_report(findings=findings)


@dataclass(frozen=True)
class _Deadlines:
    """The deadlines of the steps of an analysis; None without a time budget.

    Attributes:
        directions: After half of the budget: the last start of a direction, if other methods follow.
        methods: After four fifths of the budget: the last start of a fit of any method.
        everything: At the end of the budget: the last start of captions and null scores.
    """

    directions: Deadline | None = None
    methods: Deadline | None = None
    everything: Deadline | None = None

    @classmethod
    def of(cls, time_budget: float | None) -> _Deadlines:
        """Divide a budget of some seconds, starting now."""
        if time_budget is None:
            return cls()
        return cls(*(Deadline.after(part * time_budget) for part in (0.5, 0.8, 1.0)))


@dataclass(frozen=True)
class _FittedExamples:
    """The examples that a method is fitted on.

    Attributes:
        partition: The analysed rows that have a value.
        values: Their values, as far as this process holds them.
        left_out: (m,) int64, the ids of the analysed examples without a value.
    """

    partition: Partition
    values: RowValues
    left_out: IntArray


def _fitted_examples(method: FittableMethod, values: Values, grades: Grades, partition: Partition) -> _FittedExamples:
    """Match the values of a method to the rows that this process holds for it, without those not finite. Collective."""
    rows = partition.predicted_rows if method.by_prediction else partition.rows
    held = RowValues.of(values, grades, rows, _VALUES_NAMES.get(method.name, method.name))
    return _FittedExamples(*partition.without_missing(held, grades.ids))


def _finite_reference(reference: Values | None) -> Values | None:
    """Return the rows of the reference that are finite."""
    if reference is None:
        return None
    finite = finite_rows_of(as_rows(reference, "reference", finite=False))
    if finite.all():
        return reference
    return reference[torch.from_numpy(finite)] if isinstance(reference, torch.Tensor) else reference[finite]


def _training_examples(
    reference: Values | None, labels: Any, directions: FailureDirections, partition: Partition
) -> TrainingExamples | None:
    """Return the training examples of all processes, or None if their labels are not known. Collective."""

    def own() -> TrainingExamples | None:
        known = reference is not None and labels is not None
        return TrainingExamples.of(as_rows(reference, "reference", finite=False), labels, directions) if known else None

    parts = [part for part in partition.workers.gather_results(own) if part is not None]
    return TrainingExamples.joined(parts) if parts else None


def _analysed_rows(examples: Mapping[str, _FittedExamples], partition: Partition) -> BoolArray:
    """Return (N,) bool, the rows that directions, or else trees, were fitted on; without both the sampled rows."""
    fitted = next((examples[name] for name in _VALUES_NAMES if name in examples), None)
    return partition.sampled if fitted is None else fitted.partition.sampled


def _left_out_notes(examples: Mapping[str, _FittedExamples], grades: Grades, partition: Partition) -> Iterator[str]:
    """Yield a sentence for each method that had to leave examples out."""
    for name, mine in examples.items():
        if len(mine.left_out):
            total = len(np.unique(as_array(grades.ids)[partition.sampled]))
            values, ids = _VALUES_NAMES.get(name, "features"), listed_ids(mine.left_out.tolist())
            yield (
                f"{_TITLES.get(name, name)} leave out {len(mine.left_out)} of {total} examples, whose {values} are"
                f" missing or not finite: {ids}."
            )


def _fitted(contributions: Mapping[str, Contribution], name: str, default: Any) -> Any:
    """Return the fitted object of a method, or the default if the method did not run."""
    return contributions[name].fitted if name in contributions else default


def _sampled_share(partition: Partition) -> float:
    """Return the share of the rows that are analysed, in [0, 1]."""
    return float(partition.sampled.mean()) if len(partition.sampled) else 1.0


def _result(
    grades: Grades,
    partition: Partition,
    classes: tuple[ClassReport, ...],
    contributions: Mapping[str, Contribution],
    timings: dict[str, float],
    notes: tuple[str, ...],
    copies: int,
) -> AnalysisResult:
    """Combine the reports of classes and the contributions of all methods."""
    summary = {"accuracy": mean_of(grades.correct), "coverage": grades.coverage}
    groups: tuple[GroupReport, ...] = ()
    sections: dict[str, dict[str, Any]] = {}
    for name, contribution in contributions.items():
        summary |= contribution.summary
        groups += contribution.groups
        notes += contribution.notes
        if contribution.section or contribution.columns:
            sections[name] = _section(contribution)
    directions: FailureDirections | None = _fitted(contributions, "directions", None)
    report = FailureReport(
        examples=len(torch.unique(grades.ids)),
        accuracy=mean_of(grades.correct),
        classes=classes,
        groups=groups,
        methods=sections,
        summary=defined_numbers(summary),
        timings=timings,
        coverage=grades.coverage,
        sampled=_sampled_share(partition),
        copies=copies,
        explained=None if directions is None else directions.explained_overall,
        doubtful=directions is not None and directions.failures_look_doubtful(grades.failed),
        notes=notes,
    )
    trees = _fitted(contributions, "trees", {})
    table = ExampleTable.of(grades, None if directions is None else directions.out_of_fold, trees)
    additional = {name: one.fitted for name, one in contributions.items() if name not in _VALUES_NAMES}
    return AnalysisResult(report, directions, trees, table, fitted=additional)


def _section(contribution: Contribution) -> dict[str, Any]:
    """Return what a method adds to ``report.json``: its section, and its columns of the table of classes."""
    columns = {name: list(values) for name, values in contribution.columns.items()}
    return dict(contribution.section) | ({"columns": columns} if columns else {})


def _finding_examples(grades: Grades, result: AnalysisResult, attributes: dict[str, Attribute]) -> FindingExamples:
    """Return the examples of an analysis for its findings, by id, so that the order of the rows has no influence."""
    directions, shared = result.directions, result.shared
    order = np.lexsort((as_array(grades.labels), as_array(grades.ids)))

    def by_id(values: Any) -> Any:
        return None if values is None else as_array(values)[order]

    return FindingExamples(
        ids=by_id(grades.ids),
        labels=by_id(grades.labels),
        failed=by_id(grades.failed),
        predictions=by_id(grades.predictions),
        sources=by_id(grades.groups),
        values=None if directions is None else by_id(directions.out_of_fold),
        shared_values=None if shared is None else by_id(shared.out_of_fold),
        in_doubt=None if directions is None else by_id(directions.in_doubt),
        attributes={name: Attribute(by_id(one.codes), one.values) for name, one in attributes.items()},
        leaves={
            name: [as_array(leaf.ids) for leaf in tree.leaves]
            for (grouping, name), tree in result.trees.items()
            if grouping == LABEL.name
        },
    )


def _attributes(
    metadata: Mapping[str, Any] | None, grades: Grades, most_values: int = MOST_VALUES
) -> dict[str, Attribute]:
    """Return the attributes with one code per row of the grades."""
    every_row = np.ones(len(grades), dtype=bool)
    attributes = {}
    for name, values in (metadata or {}).items():
        attribute = read_attribute(values, str(name), most_values=most_values)
        codes = RowValues.of(attribute.codes, grades, every_row, f"metadata[{str(name)!r}]").all()
        attributes[str(name)] = Attribute(as_array(codes), attribute.values)
    return attributes


def _enrich(
    classes: tuple[ClassReport, ...],
    attributes: dict[str, Attribute],
    grades: Grades,
    directions: FailureDirections | None,
    partition: Partition,
) -> tuple[ClassReport, ...]:
    """Add the frequencies of the values of attributes to the reports of all classes."""
    members = members_of(grades)
    values = None if directions is None else as_array(directions.out_of_fold)

    def values_of_class(k: int) -> tuple[ValueReport, ...]:
        rows = members[k].rows
        has_direction = values is not None and not np.isnan(values[rows]).all()
        return enrichment(
            {name: attribute[rows] for name, attribute in attributes.items()},
            members[k].failed,
            None if grades.confidence is None else as_array(grades.confidence)[rows],
            values[rows] < 0 if values is not None and has_direction else None,
            sources=members[k].sources,
        )

    found = partition.merge_results(lambda: {k: values_of_class(k) for k in range(len(classes)) if partition.owns(k)})
    return tuple(replace(entry, enrichment=found[k]) for k, entry in enumerate(classes))


def _slice(
    classes: tuple[ClassReport, ...], attributes: dict[str, Attribute], grades: Grades, partition: Partition
) -> tuple[tuple[ClassReport, ...], tuple[SliceReport, ...]]:
    """Add the slices of each class to its report, and return those of all classes together."""
    members = members_of(grades)

    def slices_of_class(k: int) -> tuple[SliceReport, ...]:
        of_class = {name: attribute[members[k].rows] for name, attribute in attributes.items()}
        return slices_of(of_class, members[k].failed, class_name=members[k].name, sources=members[k].sources)

    found = partition.merge_results(lambda: {k: slices_of_class(k) for k in range(len(classes)) if partition.owns(k)})
    leading = leading_slices(found[k] for k in range(len(classes)))
    ids = as_array(grades.ids)
    sources = ids if grades.groups is None else as_array(grades.groups)  # a multilabel example has several rows
    is_clustered = grades.groups is not None or len(np.unique(ids)) < len(ids)
    every = slices_of(
        attributes,
        as_array(grades.failed),
        sources=sources if is_clustered else None,
        labels=as_array(grades.labels),
    )
    (overall,) = leading_slices([every])
    return tuple(replace(entry, slices=rows) for entry, rows in zip(classes, leading, strict=True)), overall


def _notes(
    classes: tuple[ClassReport, ...],
    contributions: Mapping[str, Contribution],
    n_uncaptioned: int,
    n_without_null_scores: int,
    sampled_share: float,
    copies: int,
) -> tuple[str, ...]:
    """Return sentences that say which examples count as one source, and what the analysis skipped or could not fit."""
    groups = [group for contribution in contributions.values() for group in contribution.groups]
    counts = {
        "failure directions": sum(entry.skipped == SKIPPED_FOR_TIME for entry in classes),
        "failure trees": sum(group.skipped == SKIPPED_FOR_TIME for group in groups),
        "captions of classes": n_uncaptioned,
        "CV scores by chance": n_without_null_scores,
    }
    skipped = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    notes = []
    if copies:
        notes.append(
            f"{copies} {'example is an exact copy' if copies == 1 else 'examples are exact copies'} of another example:"
            " copies of an image count as one source in every fold, permutation and interval."
        )
    if sampled_share < 1:
        notes.append(f"Directions and trees analysed a sample of {sampled_share:.1%} of the examples.")
    if skipped:
        notes.append(f"Skipped to keep the time budget: {skipped}, those with the fewest failures.")
    return (*notes, *failed_fits(classes, groups))


@contextmanager
def _timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Record the seconds that a step takes."""
    start = perf_counter()
    yield
    timings[step] = round(perf_counter() - start, 4)
