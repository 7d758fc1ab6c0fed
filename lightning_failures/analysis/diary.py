"""The failure diary: failure modes that are tracked from analysis to analysis, each under a stable name.

An analysis *detects* a mode in every class with a pattern, and one more for each additional direction of the class.
Within a class, detected modes are matched one to one with known modes
(:mod:`lightning_failures.directions.matching`): first with the open ones, then with those that were cured. A detected
mode without a match is new. It is named after its class and numbered in order of appearance, as in "nine 1"; names are
never reused.

A test at every epoch has some false positives. Therefore a mode is *born* once it was detected in three analyses in a
row, and *cured* once it was then missed in three analyses in a row. Before its birth the mode is reported as "new", and
it is dropped if it is missed three times in a row. A cured mode that is detected again keeps its name: it is reported
as "returned" until it was detected three times in a row.

A born mode grows or shrinks if, among the examples flagged in its *reference* snapshot, significantly more (or fewer)
have become failures than have become successes since then, by a sign test at 5 %. The first detection is the first
reference; after a reported change the present takes its place. Slow changes therefore add up until they are reported,
once. Every analysis runs this test, so a few unchanged modes are reported as changed. The test also assumes independent
examples, which frames of one video, or examples whose logits move together, are not. The size of a mode is something
else: the number of failures that are flagged now.

An analysis does not count as having missed a mode if it skipped the class for lack of time, if the fit of the class
failed, or if it analysed less than half of the examples of the class that the last analysis which detected the mode had
analysed.

Examples are found again by the digests of their images, whatever their ids (:mod:`lightning_failures.data.joining`). So
if the validation set changes, the modes are compared on the images that are still there, and a model that stays the
same leaves all modes as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.arrays import as_array, defined, unit_vectors
from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.core.text import is_failed_fit
from lightning_failures.core.types import BoolArray, FloatArray, IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.held_out import HeldOutParts
from lightning_failures.data.joining import ExampleKeys, join_examples
from lightning_failures.data.report import ClassReport, ModeReport
from lightning_failures.directions.effects import measure_effect
from lightning_failures.directions.matching import (
    CHANGE_LEVEL,
    ModeSimilarity,
    ModeSnapshot,
    flagged_change,
    match_modes,
    membership_change,
    mode_similarity,
    restrict_to_shared,
)
from lightning_failures.directions.result import FailureDirections
from lightning_failures.stats.intervals import sign_test

IN_A_ROW = 3
"""Number of consecutive detections after which a mode is born, and of consecutive misses after which it is cured."""

MAX_MODES = 16
"""Maximum number of modes that are kept per class, including cured ones; the most recently detected ones stay."""

_CHANGED = ("growing", "shrinking")


@dataclass(frozen=True, eq=False)
class Mode:
    """The state of one tracked mode.

    Attributes:
        name: Class name and number.
        class_index: Label of the class.
        class_name: Name of the class.
        direction: (D,) float16, unit length: the SVM weight w at the last detection; failures lie against it.
        snapshot: The examples at the last detection.
        reference: The examples at the last reported change, or at the first detection.
        since: Epoch of the first detection.
        last: Number of the last analysis that detected the mode.
        seen: Number of analyses that detected the mode.
        streak: Number of detections in a row, up to the last analysis of the class.
        missed: Number of misses in a row, up to the last analysis of the class.
        born: Whether the mode was detected three times in a row since it appeared or returned.
        was_cured: Whether the mode was ever cured.
        cured: Whether the mode is cured now.
        caption: Latest hardest caption.
        threshold: Scalar product of the direction and phi of an image below which the image was flagged at the last
            detection; None in diaries of former versions.
    """

    name: str
    class_index: int
    class_name: str
    direction: NDArray[np.float16]
    snapshot: ModeSnapshot
    reference: ModeSnapshot
    since: int | None
    last: int
    seen: int = 1
    streak: int = 1
    missed: int = 0
    born: bool = False
    was_cured: bool = False
    cured: bool = False
    caption: str | None = None
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class Diary:
    """The state of the diary after some analyses.

    Attributes:
        modes: Open and cured modes, by class and name.
        analyses: Number of analyses.
        numbers: Last number given to a mode of each class, by class name.
        encoder: Fingerprint of the encoder whose embedding space the directions are in.
        run_id: Id of the run.
    """

    modes: tuple[Mode, ...] = ()
    analyses: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    encoder: str | None = None
    run_id: str | None = None


@dataclass(frozen=True)
class _DetectedMode:
    """A mode that the present analysis detects."""

    direction: NDArray[np.float16]
    threshold: float
    snapshot: ModeSnapshot
    caption: str | None


@dataclass(frozen=True)
class _ClassObservation:
    """The findings of the present analysis about one class.

    Attributes:
        index: Label of the class.
        name: Name of the class.
        examples: Number of graded examples.
        analysed: Number of examples that directions were computed on.
        ids: (n,) int64, the graded examples; empty without a table of examples.
        failed: (n,) bool.
        digests: (n,) int64, or None.
        detected: The modes that the analysis detects.
    """

    index: int
    name: str
    examples: int
    analysed: int
    ids: IntArray
    failed: BoolArray
    digests: IntArray | None
    detected: list[_DetectedMode]

    def holds_half_of(self, snapshot: ModeSnapshot) -> bool:
        """Return whether at least half of the examples of a snapshot were analysed again."""
        found, _ = join_examples(snapshot.keys, ExampleKeys(self.ids, self.digests))
        return 2 * min(self.analysed, len(found)) >= len(snapshot.ids)


def advance(diary: Diary, result: AnalysisResult) -> tuple[Diary, tuple[ModeReport, ...]]:
    """Enter one analysis into the diary.

    Args:
        diary: The diary after the previous analysis.
        result: An analysis in the same training; without directions and table it adds no observation.

    Returns:
        The diary after this analysis, and a report of each open mode and of each mode that was cured just now, by class
        and name.

    >>> import torch
    >>> from lightning_failures.analysis.analyse import analyse
    >>> from lightning_failures.data.grades import Grades
    >>> generator = torch.Generator().manual_seed(0)
    >>> x = torch.randn(300, 8, generator=generator)
    >>> failed = x[:, 0] + 0.5 * torch.randn(300, generator=generator) < -0.5
    >>> grades = Grades(torch.arange(300), torch.zeros(300).long(), failed.long(), torch.ones(300), ("cat", "dog"))
    >>> result, diary = analyse(grades, x), Diary()
    >>> for _ in range(3):
    ...     diary, (mode,) = advance(diary, result)
    ...     print(mode.name, mode.status, mode.seen)
    cat 1 new 1
    cat 1 new 2
    cat 1 persisting 3
    """
    diary = replace(_in_space_of(result, diary), analyses=diary.analyses + 1, run_id=result.report.run_id)
    known: dict[int, list[Mode]] = {}
    for mode in diary.modes:
        known.setdefault(mode.class_index, []).append(mode)
    known_keys = {k: modes[0].snapshot.keys for k, modes in known.items()}
    numbers = dict(diary.numbers)
    kept: list[Mode] = []
    reports: list[ModeReport] = []
    for observation in _observations(result, known_keys):
        if observation.detected or observation.index in known:
            modes = known.pop(observation.index, [])
            kept_in_class, reports_of_class = _advance_class(
                modes, observation, numbers, diary.analyses, result.report.epoch
            )
            kept += kept_in_class
            reports += reports_of_class
    not_in_report = [mode for modes in known.values() for mode in modes]
    return replace(diary, modes=(*kept, *not_in_report), numbers=numbers), tuple(reports)


def with_modes(result: AnalysisResult, modes: tuple[ModeReport, ...]) -> AnalysisResult:
    """Return the result with the records of the diary, and a note if some examples could not be found again."""
    unmatched = {mode.class_name: max(mode.unmatched or 0, 0) for mode in modes}
    unmatched = {name: count for name, count in unmatched.items() if count}
    if not unmatched:
        return result.with_report(modes=modes)
    note = (
        f"{sum(unmatched.values())} examples of the failure diary ({', '.join(unmatched)}) are not in this analysis: it"
        " holds other images. Failure modes are compared on the images that are in both."
    )
    return result.with_report(modes=modes, notes=(*result.report.notes, note))


def _in_space_of(result: AnalysisResult, diary: Diary) -> Diary:
    """Return the diary, without its modes if the directions of the result are in another embedding space."""
    if result.directions is None:
        return diary
    dim = result.directions.weight.shape[1]
    same_encoder = diary.encoder == result.report.encoder_fingerprint
    if same_encoder and all(len(mode.direction) == dim for mode in diary.modes):
        return diary
    return replace(diary, modes=(), encoder=result.report.encoder_fingerprint)


def _advance_class(
    modes: list[Mode], observation: _ClassObservation, numbers: dict[str, int], analysis: int, epoch: int | None
) -> tuple[list[Mode], list[ModeReport]]:
    """Update the known modes of one class; new modes take their numbers from ``numbers``, which is changed."""
    pairs = _matched(modes, observation.detected)
    kept: list[Mode] = []
    reports: list[ModeReport] = []

    # known modes: detected again, not observable in this analysis, or missed
    for i, mode in enumerate(modes):
        if i in pairs:
            j, similarity = pairs[i]
            new = _after_detection(mode, observation.detected[j], analysis)
            status = _status(new)
            reports.append(_report_of_detected(new, status, mode.snapshot, similarity))
            kept.append(replace(new, reference=new.snapshot) if status in _CHANGED else new)
        elif mode.cured or not observation.analysed or not observation.holds_half_of(mode.snapshot):
            kept.append(mode)
            if not mode.cured:
                reports.append(_report_of_missed(mode, observation, "missing"))
        else:
            new = _after_miss(mode)
            reports.append(_report_of_missed(new, observation, "cured" if new.cured else "missing"))
            if new.missed < IN_A_ROW or new.cured:
                kept.append(new)

    # new modes, the largest first
    matched = {j for j, _ in pairs.values()}
    new_modes = [detected for j, detected in enumerate(observation.detected) if j not in matched]
    for detected in sorted(new_modes, key=lambda one: -one.snapshot.size):
        numbers[observation.name] = numbers.get(observation.name, 0) + 1
        name = f"{observation.name} {numbers[observation.name]}"
        new = _after_first_detection(name, detected, observation, analysis, epoch)
        reports.append(_report_of_detected(new, "new"))
        kept.append(new)

    most_recent = sorted(range(len(kept)), key=lambda i: -kept[i].last)[:MAX_MODES]
    return [kept[i] for i in sorted(most_recent)], reports


def _matched(modes: list[Mode], detected: list[_DetectedMode]) -> dict[int, tuple[int, ModeSimilarity]]:
    """Match known with detected modes, open modes first.

    Returns:
        The index of the detected mode and its similarity, by the index of the known mode.
    """
    pairs: dict[int, tuple[int, ModeSimilarity]] = {}
    for cured in (False, True):
        rows = [i for i, mode in enumerate(modes) if mode.cured is cured]
        taken = {j for j, _ in pairs.values()}
        columns = [j for j in range(len(detected)) if j not in taken]
        candidates = [detected[j] for j in columns]
        table = [_similarities(modes[i], candidates) for i in rows]
        pairs |= {rows[i]: (columns[j], table[i][j]) for i, j in match_modes(table)}
    return pairs


def _similarities(mode: Mode, candidates: list[_DetectedMode]) -> list[ModeSimilarity]:
    """Return the similarity of a known mode and each of some detected modes."""
    direction = mode.direction.astype(np.float32)
    return [
        mode_similarity(direction, mode.snapshot, candidate.direction.astype(np.float32), candidate.snapshot)
        for candidate in candidates
    ]


def _after_first_detection(
    name: str, detected: _DetectedMode, observation: _ClassObservation, analysis: int, epoch: int | None
) -> Mode:
    """Return the state of a new mode."""
    return Mode(
        name=name,
        class_index=observation.index,
        class_name=observation.name,
        direction=detected.direction,
        snapshot=detected.snapshot,
        reference=detected.snapshot,
        since=epoch,
        last=analysis,
        caption=detected.caption,
        threshold=detected.threshold,
    )


def _after_detection(mode: Mode, detected: _DetectedMode, analysis: int) -> Mode:
    """Return the state of a known mode that is detected again."""
    streak = 1 if mode.missed else mode.streak + 1
    return replace(
        mode,
        direction=detected.direction,
        snapshot=detected.snapshot,
        reference=detected.snapshot if mode.cured else mode.reference,
        last=analysis,
        seen=mode.seen + 1,
        streak=streak,
        missed=0,
        born=(mode.born and not mode.cured) or streak >= IN_A_ROW,
        cured=False,
        caption=detected.caption if detected.caption is not None else mode.caption,
        threshold=detected.threshold,
    )


def _after_miss(mode: Mode) -> Mode:
    """Return the state of a known mode that an analysis of its class does not detect."""
    missed = mode.missed + 1
    cured = missed >= IN_A_ROW and (mode.born or mode.was_cured)
    return replace(mode, missed=missed, cured=cured, was_cured=mode.was_cured or cured)


def _status(mode: Mode) -> str:
    """Return the status of a known mode that is detected again."""
    if not mode.born:
        return "returned" if mode.was_cured else "new"
    gained, lost = flagged_change(mode.snapshot, mode.reference)
    if sign_test(gained, lost) > CHANGE_LEVEL:
        return "persisting"
    return "growing" if gained > lost else "shrinking"


def _report_of_detected(
    mode: Mode, status: str, before: ModeSnapshot | None = None, similarity: ModeSimilarity | None = None
) -> ModeReport:
    """Return the report of a detected mode; ``before`` is the last snapshot of a known mode."""
    gained, lost, unmatched = None, None, None
    if before is not None:
        gained, lost = membership_change(mode.snapshot, before)
        unmatched = len(before.ids) - len(restrict_to_shared(mode.snapshot, before)[0].ids)
    return ModeReport(
        name=mode.name,
        class_name=mode.class_name,
        status=status,
        since=mode.since,
        seen=mode.seen,
        size=mode.snapshot.size,
        gain=defined(measure_effect(np.where(mode.snapshot.flagged, -1.0, 1.0), mode.snapshot.failed).gain),
        examples=len(mode.snapshot.ids),
        gained=gained,
        lost=lost,
        unmatched=unmatched,
        cosine=None if similarity is None else round(similarity.cosine, 4),
        shared=None if similarity is None or similarity.shared is None else round(similarity.shared, 4),
        caption=mode.caption,
    )


def _report_of_missed(mode: Mode, observation: _ClassObservation, status: str) -> ModeReport:
    """Return the report of a mode that is not detected, with the number of its last members that still fail."""
    unflagged = np.zeros_like(observation.failed)
    present = ModeSnapshot(observation.ids, unflagged, observation.failed, observation.digests)
    now, then = restrict_to_shared(present, mode.snapshot)
    return ModeReport(
        name=mode.name,
        class_name=mode.class_name,
        status=status,
        since=mode.since,
        seen=mode.seen,
        missed=mode.missed,
        examples=observation.analysed or observation.examples,
        unmatched=len(mode.snapshot.ids) - len(then.ids) if observation.analysed else None,
        left=int(np.count_nonzero(then.members & now.failed)) if then.size else None,
        caption=mode.caption,
    )


def _observations(result: AnalysisResult, known_keys: dict[int, ExampleKeys]) -> Iterator[_ClassObservation]:
    """Yield the findings about each class, with the modes that are detected in classes with a pattern.

    If the examples of a class are those of its known modes, the same arrays are used: they are compared, kept and
    stored once.
    """
    classes, directions, table = result.report.classes, result.directions, result.table
    if directions is None or table is None:
        no_ids, no_failures = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
        for k, entry in enumerate(classes):
            yield _ClassObservation(k, entry.name, entry.examples, 0, no_ids, no_failures, None, [])
        return

    # sort the rows of the table by class
    labels, failed = as_array(table.labels), as_array(table.failed)
    keys = ExampleKeys(as_array(table.ids), None if table.digests is None else as_array(table.digests))
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(classes) + 1))

    ranks = _ranks(directions, table, result.parts)
    for k, (entry, (start, stop)) in enumerate(zip(classes, pairwise(bounds.tolist()), strict=True)):
        rows = order[start:stop]
        own, detected = keys.take(rows), []
        for number, rank in enumerate(ranks):
            if entry.pattern and k in rank.row_of:
                snapshot = _snapshot(own, failed[rows], rank.values[rows], known_keys.get(k))
                caption = _hardest_caption(entry) if number == 0 else None
                row = rank.row_of[k]
                detected.append(_DetectedMode(rank.units[row], float(rank.thresholds[row]), snapshot, caption))
        analysed = int(np.count_nonzero(~np.isnan(ranks[0].values[rows])))
        reason = directions.skipped.get(k, SKIPPED_FOR_TIME)
        if reason != SKIPPED_FOR_TIME and not is_failed_fit(reason):
            analysed = len(rows)  # too few failures for a direction is also a finding
        yield _ClassObservation(k, entry.name, entry.examples, analysed, own.ids, failed[rows], own.digests, detected)


@dataclass(frozen=True)
class _Rank:
    """The first directions of all classes, or the additional directions of one rank.

    Attributes:
        units: (C, D) float16, the directions at unit length.
        thresholds: (C,) float64, scalar product of the unit direction and phi at which the decision value is 0.
        row_of: Row of each class in ``units``, by label.
        values: (N,) decision values for the rows of the table; NaN for rows without one.
    """

    units: NDArray[np.float16]
    thresholds: FloatArray
    row_of: dict[int, int]
    values: NDArray[np.float32]


def _ranks(directions: FailureDirections, table: ExampleTable, parts: HeldOutParts | None) -> list[_Rank]:
    """Return the first and the additional directions with their decision values for the table."""
    values = [as_array(table.values), *_additional_values(directions, table, parts)]
    ranks = []
    for fitted, column in zip((directions, *directions.further), values, strict=True):
        row_of = {label: row for row, label in enumerate(fitted.classes.tolist())}
        weight = as_array(fitted.weight).astype(np.float64)
        lengths = np.linalg.norm(weight, axis=1)
        thresholds = -as_array(fitted.bias) / np.where(lengths > 0, lengths, 1.0)
        ranks.append(_Rank(unit_vectors(weight).astype(np.float16), thresholds, row_of, column))
    return ranks


def _hardest_caption(entry: ClassReport) -> str | None:
    return entry.hardest_captions[0] if entry.hardest_captions else None


def _snapshot(
    keys: ExampleKeys, failed: BoolArray, values: NDArray[np.float32], known: ExampleKeys | None
) -> ModeSnapshot:
    """Return the snapshot of the examples that have a decision value; reuse ``known`` if it holds the same ones."""
    has_value = ~np.isnan(values)
    if not has_value.all():
        keys, failed, values = keys.take(has_value), failed[has_value], values[has_value]
    if known is not None and keys.same_as(known):
        keys = known
    return ModeSnapshot(keys.ids, values < 0, failed, keys.digests)


def _additional_values(
    directions: FailureDirections, table: ExampleTable, parts: HeldOutParts | None
) -> list[NDArray[np.float32]]:
    """Return (N,) decision values of each additional direction for the table; NaN where it was not fitted."""
    fitted = np.ones(len(table), dtype=bool)
    if parts is not None:
        held_out = np.concatenate([parts.report.grades.ids, parts.decision.grades.ids])
        fitted = ~np.isin(as_array(table.ids), held_out)
    columns = []
    for additional in directions.further:
        column = np.full(len(table), np.nan, dtype=np.float32)
        column[fitted] = as_array(additional.out_of_fold)
        columns.append(column)
    return columns
