"""From grades and embeddings to a report: the whole analysis, without a Trainer, a logger or a disk.

It runs in a notebook as in the callback. The order is that of the questions: which classes fail by a pattern
(directions), how it reads in words (captions), which rules on robust features hold the failures (trees). Several
processes may do it together: each fits the classes that it owns, and all get the same report.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from lightning_failures.analysis.class_reports import class_reports
from lightning_failures.analysis.enrichment import Attribute, enrichment, read_attribute
from lightning_failures.analysis.fits import DirectionsFit, TreesFit, defined_numbers, mean_of
from lightning_failures.analysis.method import Contribution, FittableMethod, FitTask
from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.captions.assign import CaptionScorer, caption_classes, classes_to_caption
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.core.arrays import as_array
from lightning_failures.core.budget import SKIPPED_FOR_TIME, Deadline
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import ClassSubset, RowValues, Values, members_of
from lightning_failures.data.partition import SINGLE_PROCESS, Partition, Workers
from lightning_failures.data.report import ClassReport, FailureReport, GroupReport, ValueReport
from lightning_failures.directions.null_scores import CLASSES_WITH_NULL_SCORES, add_null_cv_scores
from lightning_failures.directions.result import FailureDirections
from lightning_failures.trees.fit import FailureTree


def analyse(
    grades: Grades,
    embeddings: Values | None = None,
    *,
    features: Values | None = None,
    reference: Values | None = None,
    captions: Callable[[int], ClassCaptions | None] | None = None,
    metadata: Mapping[str, Any] | None = None,
    sampled: Any = None,
    permutations: int = 999,
    n_directions: int = 1,
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
) -> AnalysisResult:
    """Explain the errors of one evaluation.

    Args:
        grades: Right and wrong; N rows.
        embeddings: (N, D) float in the order of ``grades`` rows, or (U, D) one row for each of the U distinct ids,
            ascending. None: no directions. Large ones may be float16 and mapped from disk: they are read a class at a
            time, not copied as a whole, and never written to.
        features: Likewise, of an adversarially robust model. None: no trees.
        reference: (M, D) embeddings that phi is standardised with. None: ``embeddings``.
        captions: Gives the embedded candidates of a class (by index), or None; see
            :func:`~lightning_failures.captions.candidates.caption_source`. Asked only for classes with a direction.
        metadata: Known attributes of the examples, by name: (N,) or (U,) integers, strings or booleans, aligned like
            ``grades``; see :func:`~lightning_failures.analysis.enrichment.read_attribute`. Nothing is fitted to them:
            each
            class reports how often every value occurs among all, the failures and the flagged.
        sampled: (N,) bool, the rows that directions and trees look at; ``embeddings`` and ``features`` are of these
            only. Examples and accuracy are still counted over all. None: every row.
        permutations: Of the screening test.
        n_directions: Directions a class.
        top_captions: How many hardest and easiest captions a class keeps.
        top_examples: How many hardest and easiest examples a class keeps.
        captioned_classes: Only this many classes get captions, those with a pattern and the lowest accuracy first.
        delta: A valid leaf has an error rate above the base error rate + delta ...
        tau: ... and an error coverage above tau.
        cv_permutations: Permutations of correctness whose CV scores stand beside those of 10 classes, those with a
            pattern and the lowest accuracy first. Each takes a fit: 20 of them take as long as the rest.
        time_budget: Seconds. When half of them are spent no further direction is fitted (four fifths where there are no
            features), after four fifths no further tree is grown, and then no further captions are scored, nor
            permutations fitted; those with the most failures come first. The report's notes say what was left out.
            None: everything.
        seed: The only source of randomness.
        device: Where Gram matrices are computed.
        workers: The processes that do this together. Each calls with the same grades; its ``embeddings`` have one row
            for each distinct id among the rows of the classes that it owns
            (:func:`~lightning_failures.data.partition.owned_rows`; for ``features`` those with ``predicted``), and its
            ``reference`` is any part of the whole. All return the same report.
        methods: Additional methods, each with its values, aligned like ``embeddings`` (or like ``features`` if it is
            ``by_prediction``).

    Returns:
        The report with the fitted ``.directions`` and ``.trees`` behind it.

    Raises:
        DataError: rows that do not match, or metadata that cannot be counted.

    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(300, 8, generator=generator)
    >>> failed = x[:, 0] + 0.5 * torch.randn(300, generator=generator) < -0.5
    >>> grades = Grades(torch.arange(300), torch.zeros(300).long(), failed.long(), torch.ones(300), ("cat", "dog"))
    >>> result = analyse(grades, x)
    >>> result["classes"][0]["pattern"], result["classes"][1]["skipped"]
    (True, 'no examples')
    """
    share = Partition.of(grades, sampled, workers)
    by_label = members_of(grades)
    attributes = _attributes(metadata, grades)
    budget = [None if time_budget is None else Deadline.after(part * time_budget) for part in (0.5, 0.8, 1.0)]
    timings: dict[str, float] = {}

    # each method is fitted in turn; what follows the directions leaves them half of the time
    stages: list[tuple[FittableMethod, Values]] = []
    if embeddings is not None:
        stages.append((DirectionsFit(n_directions, permutations), embeddings))
    if features is not None:
        stages.append((TreesFit(delta, tau), features))
    stages += methods
    found: dict[str, Contribution] = {}
    held: dict[str, RowValues] = {}
    for number, (method, values) in enumerate(stages):
        with _timed(timings, method.name):
            held[method.name] = RowValues.of(
                values,
                grades,
                share.predicted_rows if method.by_prediction else share.rows,
                {"directions": "embeddings", "trees": "features"}.get(method.name, method.name),
            )
            found[method.name] = method.fit(
                FitTask(
                    grades,
                    held[method.name],
                    share,
                    reference=reference,
                    deadline=budget[1] if number == len(stages) - 1 or method.name != "directions" else budget[0],
                    seed=seed,
                    device=device,
                )
            )
    directions: FailureDirections | None = found["directions"].fitted if "directions" in found else None
    trees: dict[tuple[str, str], FailureTree] = found["trees"].fitted if "trees" in found else {}
    embedded = held.get("directions")

    classes = class_reports(grades, directions, trees, share.sampled, top_examples)
    unworded = untested = 0
    if embedded is not None and directions is not None and captions is not None:
        with _timed(timings, "captions"):
            classes, unworded = caption_classes(
                classes,
                captions,
                CaptionScorer(
                    directions, members_of(grades, sampled=share.sampled), embedded, top_captions, permutations, seed
                ),
                classes_to_caption(classes, captioned_classes),
                share,
                deadline=budget[2],
            )
    if embedded is not None and directions is not None and cv_permutations:
        with _timed(timings, "cv_nulls"):
            classes, untested = add_null_cv_scores(
                classes,
                directions,
                members_of(grades, sampled=share.sampled),
                embedded,
                classes_to_caption(classes, CLASSES_WITH_NULL_SCORES),
                share,
                permutations=cv_permutations,
                seed=seed,
                device=device,
                deadline=budget[2],
            )
    if attributes:
        with _timed(timings, "enrichment"):
            classes = _enrich(classes, attributes, by_label, grades, directions, share)
    return _result(grades, share, classes, found, timings, not_scored=(unworded, untested))


def _result(
    grades: Grades,
    share: Partition,
    classes: tuple[ClassReport, ...],
    found: Mapping[str, Contribution],
    timings: dict[str, float],
    *,
    not_scored: tuple[int, int],
) -> AnalysisResult:
    """Put the contributions of all methods together."""
    groups = tuple(group for contribution in found.values() for group in contribution.groups)
    summary = {"accuracy": mean_of(grades.correct), "coverage": grades.coverage}
    for contribution in found.values():
        summary |= contribution.summary
    sampled_share = float(share.sampled.mean()) if len(grades) else 1.0
    notes = _notes(classes, groups, *not_scored, sampled_share)
    report = FailureReport(
        examples=len(torch.unique(grades.ids)),
        accuracy=mean_of(grades.correct),
        classes=classes,
        groups=groups,
        methods={name: _section(one) for name, one in found.items() if one.section or one.columns},
        summary=defined_numbers(summary),
        timings=timings,
        coverage=grades.coverage,
        sampled=sampled_share,
        notes=(*notes, *(note for contribution in found.values() for note in contribution.notes)),
    )
    directions = found["directions"].fitted if "directions" in found else None
    trees = found["trees"].fitted if "trees" in found else {}
    table = ExampleTable.of(grades, None if directions is None else directions.out_of_fold, trees)
    fitted = {name: one.fitted for name, one in found.items() if name not in ("directions", "trees")}
    return AnalysisResult(report, directions, trees, table, fitted=fitted)


def _section(contribution: Contribution) -> dict[str, Any]:
    """Return what a method adds to ``report.json``: its section, and its columns of the table of classes."""
    columns = {name: list(values) for name, values in contribution.columns.items()}
    return dict(contribution.section) | ({"columns": columns} if columns else {})


def _attributes(metadata: Mapping[str, Any] | None, grades: Grades) -> dict[str, Attribute]:
    """One code a row of the grades."""
    attributes = {str(name): read_attribute(values, str(name)) for name, values in (metadata or {}).items()}
    return {
        name: Attribute(
            as_array(
                RowValues.of(attribute.codes, grades, np.ones(len(grades), dtype=bool), f"metadata[{name!r}]").all()
            ),
            attribute.values,
        )
        for name, attribute in attributes.items()
    }


def _enrich(
    classes: tuple[ClassReport, ...],
    attributes: dict[str, Attribute],
    members: list[ClassSubset],
    grades: Grades,
    directions: FailureDirections | None,
    share: Partition,
) -> tuple[ClassReport, ...]:
    def values(k: int) -> tuple[ValueReport, ...]:
        rows = members[k].rows
        scores = None if directions is None else as_array(directions.out_of_fold)[rows]
        return enrichment(
            {name: attribute[rows] for name, attribute in attributes.items()},
            members[k].failed,
            as_array(grades.confidence)[rows],
            None if scores is None or np.isnan(scores).all() else scores < 0,
            sources=members[k].sources,
        )

    found = share.merge_results(lambda: {k: values(k) for k in range(len(classes)) if share.owns(k)})
    return tuple(replace(entry, enrichment=found[k]) for k, entry in enumerate(classes))


def _notes(
    classes: tuple[ClassReport, ...], groups: tuple[GroupReport, ...], unworded: int, untested: int, sampled: float
) -> tuple[str, ...]:
    """What was not looked at, in words."""
    counts = {
        "failure directions": sum(entry.skipped == SKIPPED_FOR_TIME for entry in classes),
        "failure trees": sum(group.skipped == SKIPPED_FOR_TIME for group in groups),
        "captions of classes": unworded,
        "CV scores by chance": untested,
    }
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return (
        *([f"Directions and trees looked at {sampled:.1%} of the examples, a sample."] if sampled < 1 else ()),
        *([f"The time budget left out {told}: those with the fewest failures."] if told else ()),
    )


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timings[stage] = round(time.perf_counter() - start, 4)
