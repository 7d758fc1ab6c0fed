"""The failure diary: modes that are followed from analysis to analysis, each with a name that stays.

An analysis *sees* a mode in every class with a pattern, and one for each further direction of it. Within a class, what
is seen is matched one to one with the modes that are known (:mod:`lightning_failures.directions.matching`), first with
the open
ones, then with those that were cured; what is left is a new mode. It is named after its class and numbered in order of
appearance: "nine 1". Names are never given twice.

A test at every epoch finds something in some. So a mode is *born* when it was seen three times in a row, and *cured*
when it was then not seen three times in a row. Until it is born it is told as "new"; one that goes before is forgotten.
A cured mode that is seen again keeps its name: it is told as "returned" until it was seen three times in a row.

A born mode is growing or shrinking if, of the examples that it flagged at its *base*, more have come to fail since than
have ceased to, or fewer, by a sign test at 5 %; the present becomes the base then. The first base is the first
sighting. So slow changes add up until they are told, and are told once. That is a test at every look, too: of modes
that do not change some will be told as changing. It also takes examples as independent, which frames of one video, or
examples whose logits move together, are not. Size is something else: the flagged failures, whatever is flagged now.

An analysis that did not look at a class (for want of time), or at less than half as many of its examples as the last
one that saw the mode, does not count as not having seen it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lightning_failures.analysis.result import AnalysisResult
from lightning_failures.core.arrays import as_array, unit_vectors
from lightning_failures.core.budget import SKIPPED_FOR_TIME
from lightning_failures.core.types import BoolArray, IntArray
from lightning_failures.data.example_table import ExampleTable
from lightning_failures.data.held_out import HeldOutParts
from lightning_failures.data.report import ModeReport
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
"""Analyses that make a mode born, or cured."""

MOST = 16
"""Modes of one class that are kept, cured ones among them; the last seen ones stay."""


_CHANGED = ("growing", "shrinking")


@dataclass(frozen=True, eq=False)
class Mode:
    """One mode that is followed.

    Attributes:
        name: Its class and number.
        class_index: The label.
        class_name: Its name.
        direction: (D,) float16, unit length: w of the SVM when it was last seen; failures lie against it.
        look: What the last analysis that saw it saw.
        base: What the analysis saw that it was last told to have changed at, or the first one.
        since: The epoch in which it was first seen.
        last: The number of the analysis that saw it last.
        seen: In how many analyses it was seen.
        row: In how many in a row, up to the last that looked.
        missed: How many in a row did not see it, up to the last that looked.
        born: Seen three times in a row, since it appeared or returned.
        was_cured: Whether it ever was.
        cured: Whether it is.
        caption: The hardest caption when last there was one.
    """

    name: str
    class_index: int
    class_name: str
    direction: NDArray[np.float16]
    look: ModeSnapshot
    base: ModeSnapshot
    since: int | None
    last: int
    seen: int = 1
    row: int = 1
    missed: int = 0
    born: bool = False
    was_cured: bool = False
    cured: bool = False
    caption: str | None = None


@dataclass(frozen=True, eq=False)
class Diary:
    """What is known after some analyses.

    Attributes:
        modes: Open and cured ones, by class and name.
        analyses: How many there were.
        numbers: The last number that was given in each class, by its name.
        encoder: The fingerprint of the encoder in whose space the directions are.
    """

    modes: tuple[Mode, ...] = ()
    analyses: int = 0
    numbers: dict[str, int] = field(default_factory=dict)
    encoder: str | None = None


@dataclass(frozen=True)
class _DetectedMode:
    """A mode that this analysis sees."""

    direction: NDArray[np.float16]
    look: ModeSnapshot
    caption: str | None


@dataclass(frozen=True)
class _ClassObservation:
    """What this analysis tells of one class.

    Attributes:
        index: The label.
        name: Of the class.
        examples: How many were graded.
        looked_at: How many of them directions have looked at.
        ids: (n,) int64 of those graded; none without a table.
        failed: (n,) bool.
        sights: The modes that are seen.
    """

    index: int
    name: str
    examples: int
    looked_at: int
    ids: IntArray
    failed: BoolArray
    sights: list[_DetectedMode]


def advance(diary: Diary, result: AnalysisResult) -> tuple[Diary, tuple[ModeReport, ...]]:
    """Enter one analysis.

    Args:
        diary: After the analysis before.
        result: The analysis of the same validation set; without directions and table it adds no observation.

    Returns:
        The diary after this analysis, and what is to be told of each open mode, and of those that were cured just now,
        by class and name.

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
    diary = replace(_in_space_of(result, diary), analyses=diary.analyses + 1)
    known: dict[int, list[Mode]] = {}
    for mode in diary.modes:
        known.setdefault(mode.class_index, []).append(mode)
    numbers = dict(diary.numbers)
    kept: list[Mode] = []
    told: list[ModeReport] = []
    for scene in _scenes(result, {k: modes[0].look.ids for k, modes in known.items()}):
        if scene.sights or scene.index in known:
            modes, reports = _advance_class(
                known.pop(scene.index, []), scene, numbers, diary.analyses, result.report.epoch
            )
            kept += modes
            told += reports
    unheard = [mode for modes in known.values() for mode in modes]  # of classes that this report has not
    return replace(diary, modes=(*kept, *unheard), numbers=numbers), tuple(told)


def _in_space_of(result: AnalysisResult, diary: Diary) -> Diary:
    """The diary; without its modes where the report's directions are of another space."""
    if result.directions is None:
        return diary
    dim = result.directions.weight.shape[1]
    same = diary.encoder == result.report.encoder_fingerprint and all(
        len(mode.direction) == dim for mode in diary.modes
    )
    return diary if same else replace(diary, modes=(), encoder=result.report.encoder_fingerprint)


def _advance_class(
    modes: list[Mode], scene: _ClassObservation, numbers: dict[str, int], analysis: int, epoch: int | None
) -> tuple[list[Mode], list[ModeReport]]:
    """Match what is seen of one class with what is known of it; ``numbers`` are drawn from."""
    pairs = _paired(modes, scene.sights)
    kept: list[Mode] = []
    told: list[ModeReport] = []
    for i, mode in enumerate(modes):
        if i in pairs:
            j, alike = pairs[i]
            new = _seen_again(mode, scene.sights[j], analysis)
            status = _status(new)
            told.append(_tell_seen(new, status, mode.look, alike))
            kept.append(replace(new, base=new.look) if status in _CHANGED else new)
        elif mode.cured or not scene.looked_at or 2 * scene.looked_at < len(mode.look.ids):
            kept.append(mode)
            told += [] if mode.cured else [_tell_missed(mode, scene, "missing")]
        else:
            new = _not_seen(mode)
            told.append(_tell_missed(new, scene, "cured" if new.cured else "missing"))
            kept += [new] if new.missed < IN_A_ROW or new.cured else []
    matched = {j for j, _ in pairs.values()}
    for j, sight in enumerate(scene.sights):
        if j not in matched:
            numbers[scene.name] = numbers.get(scene.name, 0) + 1
            new = _first_seen(f"{scene.name} {numbers[scene.name]}", sight, scene, analysis, epoch)
            told.append(_tell_seen(new, "new"))
            kept.append(new)
    last_seen = sorted(range(len(kept)), key=lambda i: -kept[i].last)[:MOST]
    return [kept[i] for i in sorted(last_seen)], told


def _paired(modes: list[Mode], sights: list[_DetectedMode]) -> dict[int, tuple[int, ModeSimilarity]]:
    """For the place of each mode that is seen again that of its sight, and how alike they are; open modes first."""
    pairs: dict[int, tuple[int, ModeSimilarity]] = {}
    for cured in (False, True):
        rows = [i for i, mode in enumerate(modes) if mode.cured is cured]
        taken = {j for j, _ in pairs.values()}
        columns = [j for j in range(len(sights)) if j not in taken]
        table = [[_likeness(modes[i], sights[j]) for j in columns] for i in rows]
        pairs |= {rows[i]: (columns[j], table[i][j]) for i, j in match_modes(table)}
    return pairs


def _likeness(mode: Mode, sight: _DetectedMode) -> ModeSimilarity:
    return mode_similarity(mode.direction.astype(np.float32), mode.look, sight.direction.astype(np.float32), sight.look)


def _first_seen(name: str, sight: _DetectedMode, scene: _ClassObservation, analysis: int, epoch: int | None) -> Mode:
    return Mode(
        name=name,
        class_index=scene.index,
        class_name=scene.name,
        direction=sight.direction,
        look=sight.look,
        base=sight.look,
        since=epoch,
        last=analysis,
        caption=sight.caption,
    )


def _seen_again(mode: Mode, sight: _DetectedMode, analysis: int) -> Mode:
    row = 1 if mode.missed else mode.row + 1
    return replace(
        mode,
        direction=sight.direction,
        look=sight.look,
        base=sight.look if mode.cured else mode.base,
        last=analysis,
        seen=mode.seen + 1,
        row=row,
        missed=0,
        born=(mode.born and not mode.cured) or row >= IN_A_ROW,
        cured=False,
        caption=sight.caption if sight.caption is not None else mode.caption,
    )


def _not_seen(mode: Mode) -> Mode:
    missed = mode.missed + 1
    cured = missed >= IN_A_ROW and (mode.born or mode.was_cured)
    return replace(mode, missed=missed, cured=cured, was_cured=mode.was_cured or cured)


def _status(mode: Mode) -> str:
    """Of a mode that is seen again."""
    if not mode.born:
        return "returned" if mode.was_cured else "new"
    gained, lost = flagged_change(mode.look, mode.base)
    if sign_test(gained, lost) > CHANGE_LEVEL:
        return "persisting"
    return "growing" if gained > lost else "shrinking"


def _tell_seen(
    mode: Mode, status: str, before: ModeSnapshot | None = None, alike: ModeSimilarity | None = None
) -> ModeReport:
    gained, lost = (None, None) if before is None else membership_change(mode.look, before)
    return ModeReport(
        name=mode.name,
        class_name=mode.class_name,
        status=status,
        since=mode.since,
        seen=mode.seen,
        size=mode.look.size,
        examples=len(mode.look.ids),
        gained=gained,
        lost=lost,
        cosine=None if alike is None else round(alike.cosine, 4),
        shared=None if alike is None or alike.shared is None else round(alike.shared, 4),
        caption=mode.caption,
    )


def _tell_missed(mode: Mode, scene: _ClassObservation, status: str) -> ModeReport:
    now, then = restrict_to_shared(ModeSnapshot(scene.ids, np.zeros_like(scene.failed), scene.failed), mode.look)
    return ModeReport(
        name=mode.name,
        class_name=mode.class_name,
        status=status,
        since=mode.since,
        seen=mode.seen,
        missed=mode.missed,
        examples=scene.looked_at or scene.examples,
        left=int(np.count_nonzero(then.members & now.failed)) if then.size else None,
        caption=mode.caption,
    )


def _scenes(result: AnalysisResult, known_ids: dict[int, IntArray]) -> Iterator[_ClassObservation]:
    """The classes of a report, with what it sees in those that have a pattern.

    Ids that are the same as the known ones of the class are the same array: they are compared, kept and written once.
    """
    report, directions, table = result.report, result.directions, result.table
    if directions is None or table is None:
        nobody = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
        yield from (
            _ClassObservation(k, entry.name, entry.examples, 0, *nobody, []) for k, entry in enumerate(report.classes)
        )
        return
    labels, ids, failed = as_array(table.labels), as_array(table.ids), as_array(table.failed)
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(report.classes) + 1))
    values = [as_array(table.values), *_further_values(directions, table, result.parts)]
    ranks = [
        (_units(as_array(rank.weight)), {label: row for row, label in enumerate(rank.classes.tolist())})
        for rank in (directions, *directions.further)
    ]
    for k, (entry, (start, stop)) in enumerate(zip(report.classes, pairwise(bounds.tolist()), strict=True)):
        rows = order[start:stop]
        captions = (entry.hardest_captions[0] if entry.hardest_captions else None, *(None for _ in directions.further))
        sights = [
            _DetectedMode(units[row_of[k]], _look(ids[rows], failed[rows], mine[rows], known_ids.get(k)), caption)
            for (units, row_of), mine, caption in zip(ranks, values, captions, strict=True)
            if entry.pattern and k in row_of
        ]
        looked_at = int(np.count_nonzero(~np.isnan(values[0][rows])))
        if (
            directions.skipped.get(k, SKIPPED_FOR_TIME) != SKIPPED_FOR_TIME
        ):  # too few failures for a direction is also an answer
            looked_at = len(rows)
        yield _ClassObservation(k, entry.name, entry.examples, looked_at, ids[rows], failed[rows], sights)


def _look(ids: IntArray, failed: BoolArray, values: NDArray[np.float32], known: IntArray | None) -> ModeSnapshot:
    seen = ~np.isnan(values)
    if not seen.all():
        ids, failed, values = ids[seen], failed[seen], values[seen]
    return ModeSnapshot(known if known is not None and np.array_equal(ids, known) else ids, values < 0, failed)


def _further_values(
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


def _units(weight: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return the rows (K, D) scaled to unit length and rounded."""
    return unit_vectors(weight.astype(np.float64)).astype(np.float16)
