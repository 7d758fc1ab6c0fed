"""The failure diary for readers: the history of each failure mode over the reports of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lightning_failures.core.text import clean, escape_markdown, number, shorten_caption
from lightning_failures.data.report import FailureReport, ModeReport
from lightning_failures.report.text_tables import pipe_table

_ORDER = ("growing", "returned", "new", "cured", "shrinking", "missing", "persisting")
"""Order of statuses in lists: changes first."""


@dataclass(frozen=True)
class ModeHistory:
    """One failure mode over the analyses of a run.

    All tuples have one item for each analysis with a record of the mode.

    Attributes:
        name: Stable name, such as "nine 1".
        class_name: The class of the mode.
        epochs: Epochs of the analyses; the index of the analysis if its report has no epoch.
        steps: Optimiser steps of the analyses; None if a report has no step.
        sizes: Number of flagged failures; 0 if the mode was not seen.
        examples: Number of examples of the class.
        statuses: See :class:`~lightning_failures.data.report.ModeReport`.
        status: The last status.
        since: The epoch in which the mode was first seen.
        until: The epoch in which the mode was last seen; None if the last report in the diary still sees it.
        caption: The latest hardest caption, if there was any.
    """

    name: str
    class_name: str
    epochs: tuple[int, ...]
    steps: tuple[int | None, ...]
    sizes: tuple[int, ...]
    examples: tuple[int, ...]
    statuses: tuple[str, ...]
    status: str
    since: int | None = None
    until: int | None = None
    caption: str | None = None

    @property
    def seen(self) -> tuple[bool, ...]:
        """Whether the mode was seen, for each analysis."""
        return tuple(status not in ("missing", "cured") for status in self.statuses)


def histories(history: Sequence[FailureReport]) -> tuple[ModeHistory, ...]:
    """Return the history of each failure mode, in the order in which the modes first appear.

    Args:
        history: Reports of one run and loader, by step.

    >>> records = [("new", 12), ("new", 14), ("persisting", 15), ("missing", 0)]
    >>> reports = [
    ...     FailureReport(100, 0.8, (), modes=(ModeReport("nine 1", "nine", status, since=0, size=size),), epoch=epoch)
    ...     for epoch, (status, size) in enumerate(records)
    ... ]
    >>> (nine,) = histories(reports)
    >>> nine.sizes, nine.status, nine.since, nine.until
    ((12, 14, 15, 0), 'missing', 0, 2)
    """
    last = last_diary_entry(history)
    records: dict[str, list[tuple[int, FailureReport, ModeReport]]] = {}
    for index, report in enumerate(history):
        epoch = index if report.epoch is None else report.epoch
        for mode in report.modes:
            records.setdefault(mode.name, []).append((epoch, report, mode))
    return tuple(_history(of_mode, in_last_entry=of_mode[-1][1] is last) for of_mode in records.values())


def last_diary_entry(history: Sequence[FailureReport]) -> FailureReport | None:
    """Return the last report that was entered into the diary, or None; validations and tests outside of fit are not.

    >>> fit, single = FailureReport(9, 0.5, (), stage="fit"), FailureReport(9, 0.5, (), stage="validate")
    >>> last_diary_entry([fit, single]) is fit
    True
    """
    return next((report for report in reversed(history) if report.modes or report.stage == "fit"), None)


def _history(records: list[tuple[int, FailureReport, ModeReport]], *, in_last_entry: bool) -> ModeHistory:
    modes = [mode for _, _, mode in records]
    last = modes[-1]
    history = ModeHistory(
        name=last.name,
        class_name=last.class_name,
        epochs=tuple(epoch for epoch, _, _ in records),
        steps=tuple(report.global_step for _, report, _ in records),
        sizes=tuple(mode.size for mode in modes),
        examples=tuple(mode.examples for mode in modes),
        statuses=tuple(mode.status for mode in modes),
        status=last.status,
        since=last.since,
        caption=next((mode.caption for mode in reversed(modes) if mode.caption is not None), None),
    )
    seen_epochs = [epoch for epoch, seen in zip(history.epochs, history.seen, strict=True) if seen]
    still_seen = in_last_entry and history.seen[-1]
    return replace(history, until=None if still_seen or not seen_epochs else seen_epochs[-1])


def diary_lines(report: FailureReport, *, limit: int | None = None) -> list[str]:
    """Return one line a mode for the terminal, changed modes first; beyond ``limit``, a line with the number left out.

    >>> mode = ModeReport("nine 1", "nine", "growing", 2, 4, size=41, examples=400, gained=12, lost=3)
    >>> diary_lines(FailureReport(4000, 0.8, (), modes=(mode,)))
    ['nine 1: growing, 41 of 400 examples (+12 -3 since last seen), first seen in epoch 2']
    """
    modes = _ranked(report.modes)
    lines = [_line(mode) for mode in modes[:limit]]
    return lines + ([f"{len(modes) - len(lines)} more in report.json"] if len(modes) > len(lines) else [])


def diary_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return the modes as a Markdown section, changed modes first; empty without modes.

    >>> print(diary_markdown(FailureReport(9, 0.5, (), modes=(ModeReport("cat 1", "cat", "new", 0, size=4),))))
    ### Failure diary
    <BLANKLINE>
    | mode | status | first seen | failures | of | gain | new | gone | hardest caption |
    | :--- | :--- | ---: | ---: | ---: | ---: | ---: | ---: | :--- |
    | cat 1 | new | 0 | 4 | 0 | - | - | - | - |
    """
    modes = _ranked(report.modes)
    if not modes:
        return ""
    head = ("mode", "status", "first seen", "failures", "of", "gain", "new", "gone", "hardest caption")
    rows = [
        (
            escape_markdown(mode.name),
            escape_markdown(_status(mode)),
            number(mode.since, "d"),
            number(mode.size, "d"),
            number(mode.examples, "d"),
            number(mode.gain, ".1f"),
            number(mode.gained, "d"),
            number(mode.lost, "d"),
            "-" if mode.caption is None else escape_markdown(shorten_caption(mode.caption)),
        )
        for mode in modes[:limit]
    ]
    table = pipe_table(head, rows, "llrrrrrrl")
    more = len(modes) - len(rows)
    return f"### Failure diary\n\n{table}" + (f"\n\n{more} more modes are in report.json." if more else "")


def _ranked(modes: Iterable[ModeReport]) -> list[ModeReport]:
    """Return the modes by status, then those first that it pays most to fix."""
    rank = {status: index for index, status in enumerate(_ORDER)}
    return sorted(modes, key=lambda mode: (rank.get(mode.status, len(rank)), mode.rank))


def _line(mode: ModeReport) -> str:
    text = f"{clean(mode.name)}: {_status(mode)}"
    if mode.status not in ("missing", "cured"):
        change = "" if mode.gained is None or mode.lost is None else f" (+{mode.gained} -{mode.lost} since last seen)"
        text += f", {mode.size} of {mode.examples} examples{change}"
    elif mode.left is not None:
        text += f", {mode.left} of its failures remain"
    text += "" if mode.since is None else f", first seen in epoch {mode.since}"
    return text + ("" if mode.caption is None else f", {shorten_caption(mode.caption)}")


def is_unjudged(mode: ModeReport) -> bool:
    """Return whether an analysis could not judge a mode: its class had too few failures, or was left out.

    >>> [is_unjudged(ModeReport("cat 1", "cat", "missing", missed=missed)) for missed in (0, 2)]
    [True, False]
    """
    return mode.status == "missing" and not mode.missed


def _status(mode: ModeReport) -> str:
    """Return the status, with the number of analyses in which the mode was not seen."""
    times = "analysis" if mode.missed == 1 else "analyses"
    if mode.status == "cured":
        return f"cured: not seen in {mode.missed} {times} in a row"
    if is_unjudged(mode):
        return "not judged: its class has too few failures, or was left out"
    if mode.status == "missing":
        return f"missing: not seen in {mode.missed} {times}"
    return clean(mode.status)
