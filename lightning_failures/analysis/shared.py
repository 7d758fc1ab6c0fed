"""The pattern that all classes share: direction, effect, captions, attributes, and the classes in which it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_failures.analysis.enrichment import Attribute, enrichment
from lightning_failures.captions.candidates import ClassCaptions
from lightning_failures.captions.shared import caption_shared, shared_candidates
from lightning_failures.core.arrays import as_array, defined
from lightning_failures.core.budget import SKIPPED_FOR_TIME, Deadline
from lightning_failures.core.text import failure_notes, fit_failed
from lightning_failures.data.grades import Grades
from lightning_failures.data.members import RowValues
from lightning_failures.data.partition import Partition
from lightning_failures.data.records import ClassHold, SharedPattern, ValueReport
from lightning_failures.directions.result import FailureDirections
from lightning_failures.directions.shared import SharedDirection, fit_shared_direction
from lightning_failures.stats.intervals import benjamini_hochberg

SIGNIFICANCE_LEVEL = 0.05
MOST_VALUES = 10
"""Maximum number of attribute values that a report keeps."""

TITLE = "the pattern that all classes share"


@dataclass(frozen=True)
class SharedFinding:
    """The shared pattern of an analysis.

    Attributes:
        direction: The fitted direction; None if there is none.
        pattern: Its report; None with fewer than two classes.
        notes: Sentences for the notes of the report.
    """

    direction: SharedDirection | None = None
    pattern: SharedPattern | None = None
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> dict[str, float]:
        """The aggregates that are logged."""
        if self.pattern is None:
            return {}
        values = {"shared/p_value": self.pattern.p_value, "shared/effect": self.pattern.effect}
        return {key: value for key, value in values.items() if value is not None}


def find_shared_pattern(
    grades: Grades,
    directions: FailureDirections,
    embedded: RowValues,
    partition: Partition,
    attributes: Mapping[str, Attribute],
    captions: Callable[[int], ClassCaptions | None] | None,
    *,
    permutations: int,
    seed: int,
    top: int,
    top_captions: int,
    deadline: Deadline | None,
    raise_errors: bool = False,
) -> SharedFinding:
    """Fit the direction that all classes share, and describe it. Collective; the same on all processes.

    Examples whose labels are in doubt take part: wrong labels lie in other directions in every class, and a trait that
    all classes share, such as blur, may be what makes a label doubtful.

    Args:
        grades: N rows.
        directions: Gives phi.
        embedded: Embeddings of the rows that this process holds.
        partition: The rows that are analysed, and the processes.
        attributes: Name -> (N,) values of the examples.
        captions: Returns the captions of a class that name one attribute each; None: no captions.
        permutations: Permutations of the tests.
        seed: The source of randomness.
        top: Number of hardest examples.
        top_captions: Number of hardest and of easiest captions.
        deadline: Nothing is fitted when it has passed on any process.
        raise_errors: Raise errors; otherwise they are the reason why there is no pattern, or no captions.
    """
    if len(np.unique(as_array(grades.labels))) < 2:
        return SharedFinding()
    gather = partition.workers.gather_results
    if any(gather(lambda: deadline is not None and deadline.passed)):
        return SharedFinding(pattern=SharedPattern(skipped=SKIPPED_FOR_TIME))
    try:
        shared = fit_shared_direction(
            embedded.all(),
            as_array(grades.labels),
            as_array(grades.correct),
            ids=as_array(grades.ids),
            groups=as_array(grades.ids if grades.groups is None else grades.groups),
            reference=(as_array(directions.mean), as_array(directions.std)),
            held=embedded.held,
            used=partition.sampled,
            permutations=permutations,
            seed=seed,
            gather=gather,
        )
    except Exception as error:
        if raise_errors:
            raise
        return SharedFinding(pattern=SharedPattern(skipped=fit_failed(error)))
    if isinstance(shared, str):
        return SharedFinding(pattern=SharedPattern(skipped=shared))
    pattern = _report(shared, grades, attributes, top)

    def words() -> dict[str, Any] | str:
        if captions is None or partition.workers.rank:
            return {}
        failures = np.bincount(as_array(grades.labels), as_array(grades.failed))
        try:
            candidates = shared_candidates(captions, np.argsort(-failures, kind="stable").tolist())
            return {} if candidates is None else caption_shared(shared, candidates, top_captions)
        except Exception as error:
            if raise_errors:
                raise
            return f"{type(error).__name__}: {error}"

    found = gather(words)[0]  # of the first process
    if isinstance(found, str):
        return SharedFinding(shared, pattern, failure_notes("captions for", [(TITLE, found)]))
    return SharedFinding(shared, replace(pattern, **found))


def _report(shared: SharedDirection, grades: Grades, attributes: Mapping[str, Attribute], top: int) -> SharedPattern:
    """Return the report of the direction, without captions."""
    rows = np.flatnonzero(~np.isnan(shared.out_of_fold))
    ids, failed, values = as_array(grades.ids)[rows], as_array(grades.failed)[rows], shared.out_of_fold[rows]
    holds = benjamini_hochberg(shared.class_p_value)
    classes = [
        ClassHold(grades.class_names[k], defined(area), defined(p_value), bool(is_held))
        for k, area, p_value, is_held in zip(
            shared.tested.tolist(), shared.class_auc, shared.class_p_value, holds, strict=True
        )
    ]
    effect = shared.effect
    # classes that fail in different ways are no chance either, but directions of other classes do not predict them
    pattern = shared.p_value <= SIGNIFICANCE_LEVEL and not effect.difference <= 0
    return SharedPattern(
        examples=len(rows),
        failures=int(failed.sum()),
        p_value=defined(shared.p_value),
        pattern=pattern,
        cv_score=defined(shared.cv_score),
        cv_score_stderr=defined(shared.cv_score_stderr),
        strength=None if np.isnan(shared.p_value) else effect.strength if pattern else "none",
        effect=defined(effect.difference),
        effect_interval=effect.interval if np.isfinite(effect.difference) else None,
        flagged=effect.flagged,
        flagged_error_rate=defined(effect.flagged_error_rate),
        unflagged_error_rate=defined(effect.unflagged_error_rate),
        failures_flagged=defined(effect.coverage),
        gain=defined(effect.gain) if pattern else None,
        classes=tuple(sorted(classes, key=lambda one: -(one.auc or 0.0))),
        too_few=shared.too_few,
        hardest_ids=tuple(ids[np.lexsort((ids, values))[:top]].tolist()),
        values=_leading_values(
            enrichment(
                {name: attribute[rows] for name, attribute in attributes.items()},
                failed,
                None if grades.confidence is None else as_array(grades.confidence)[rows],
                values < 0,
                sources=None if grades.groups is None else as_array(grades.groups)[rows],
            )
        ),
    )


def _leading_values(values: tuple[ValueReport, ...]) -> tuple[ValueReport, ...]:
    """Return the values whose share of the flagged examples exceeds their share of all most."""

    def excess(row: ValueReport) -> float:
        return (row.share_of_flagged or 0.0) - (row.share or 0.0)

    return tuple(sorted(values, key=lambda row: -excess(row))[:MOST_VALUES])
