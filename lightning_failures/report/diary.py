"""The failure diary as a reader sees it: what the reports of a run tell of each mode, put together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from lightning_failures.core.text import clean, escape_markdown, number, shorten_caption
from lightning_failures.data.report import FailureReport, ModeReport

_ORDER = ("growing", "returned", "new", "cured", "shrinking", "missing", "persisting")
"""What is told first."""


@dataclass(frozen=True)
class ModeHistory:
    """One failure mode over the analyses of a run; the n places of all tuples are the analyses that tell of it.

    Attributes:
        name: Stable, as "nine 1".
        class_name: Its class.
        epochs: When each analysis was made; the number of the analysis where a report knows no epoch.
        steps: Likewise the optimiser steps; None where a report does not know.
        sizes: Its flagged failures then; 0 where it was not seen.
        examples: Of its class.
        statuses: See :class:`~lightning_failures.data.report.ModeReport`.
        status: The last one. A mode that was never seen three times in a row ends as "missing".
        since: The epoch in which it was first seen.
        until: The epoch in which it was last seen; None if the last report that was entered still sees it.
        caption: The hardest caption when last there was one.
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
        """For each analysis whether the mode was seen in it."""
        return tuple(status not in ("missing", "cured") for status in self.statuses)


def histories(history: Sequence[FailureReport]) -> tuple[ModeHistory, ...]:
    """Put together what reports tell of each mode, in the order in which the modes were first told of.

    Args:
        history: Reports of one run and loader, by step.

    >>> told = [("new", 12), ("new", 14), ("persisting", 15), ("missing", 0)]
    >>> reports = [
    ...     FailureReport(100, 0.8, (), modes=(ModeReport("nine 1", "nine", status, since=0, size=size),), epoch=epoch)
    ...     for epoch, (status, size) in enumerate(told)
    ... ]
    >>> (nine,) = histories(reports)
    >>> nine.sizes, nine.status, nine.since, nine.until
    ((12, 14, 15, 0), 'missing', 0, 2)
    """
    last = last_entry(history)
    told: dict[str, list[tuple[int, FailureReport, ModeReport]]] = {}
    for place, report in enumerate(history):
        epoch = place if report.epoch is None else report.epoch
        for mode in report.modes:
            told.setdefault(mode.name, []).append((epoch, report, mode))
    return tuple(_history(rows, seen_last=rows[-1][1] is last) for rows in told.values())


def last_entry(history: Sequence[FailureReport]) -> FailureReport | None:
    """The last report that was entered into the diary, which a single validation, or a test, is not; None without one.

    >>> fit, single = FailureReport(9, 0.5, (), stage="fit"), FailureReport(9, 0.5, (), stage="validate")
    >>> last_entry([fit, single]) is fit
    True
    """
    return next((report for report in reversed(history) if report.modes or report.stage == "fit"), None)


def _history(rows: list[tuple[int, FailureReport, ModeReport]], *, seen_last: bool) -> ModeHistory:
    modes = [mode for _, _, mode in rows]
    last = modes[-1]
    made = ModeHistory(
        name=last.name,
        class_name=last.class_name,
        epochs=tuple(epoch for epoch, _, _ in rows),
        steps=tuple(report.global_step for _, report, _ in rows),
        sizes=tuple(mode.size for mode in modes),
        examples=tuple(mode.examples for mode in modes),
        statuses=tuple(mode.status for mode in modes),
        status=last.status,
        since=last.since,
        caption=next((mode.caption for mode in reversed(modes) if mode.caption is not None), None),
    )
    seen = [epoch for epoch, was in zip(made.epochs, made.seen, strict=True) if was]
    still = seen_last and made.seen[-1]
    until = None if still or not seen else seen[-1]
    return replace(made, until=until)


def diary_lines(report: FailureReport, *, limit: int | None = None) -> list[str]:
    """Return one line a mode for the terminal, what has changed first; at most ``limit``, then how many more.

    >>> mode = ModeReport("nine 1", "nine", "growing", 2, 4, size=41, examples=400, gained=12, lost=3)
    >>> diary_lines(FailureReport(4000, 0.8, (), modes=(mode,)))
    ['nine 1: growing, 41 of 400 examples (+12 -3 since last seen), first seen in epoch 2']
    """
    modes = _ranked(report.modes)
    lines = [_line(mode) for mode in modes[:limit]]
    return lines + ([f"{len(modes) - len(lines)} more in report.json"] if len(modes) > len(lines) else [])


def diary_markdown(report: FailureReport, *, limit: int | None = None) -> str:
    """Return the modes as a Markdown section, what has changed first; empty if there is none.

    >>> print(diary_markdown(FailureReport(9, 0.5, (), modes=(ModeReport("cat 1", "cat", "new", 0, size=4),))))
    ### Failure diary
    <BLANKLINE>
    | mode | status | first seen | failures | of | gained | lost | hardest caption |
    | :--- | :--- | ---: | ---: | ---: | ---: | ---: | :--- |
    | cat 1 | new | 0 | 4 | 0 | - | - | - |
    """
    modes = _ranked(report.modes)
    if not modes:
        return ""
    head = ("mode", "status", "first seen", "failures", "of", "gained", "lost", "hardest caption")
    rule = (":---", ":---", "---:", "---:", "---:", "---:", "---:", ":---")
    rows = [
        (
            escape_markdown(mode.name),
            escape_markdown(_status(mode)),
            *(number(count, "d") for count in (mode.since, mode.size, mode.examples, mode.gained, mode.lost)),
            "-" if mode.caption is None else escape_markdown(shorten_caption(mode.caption)),
        )
        for mode in modes[:limit]
    ]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
    more = len(modes) - len(rows)
    return f"### Failure diary\n\n{table}" + (f"\n\n{more} more modes are in report.json." if more else "")


def _ranked(modes: Iterable[ModeReport]) -> list[ModeReport]:
    """By status, then by size."""
    place = {status: number for number, status in enumerate(_ORDER)}
    return sorted(modes, key=lambda mode: (place.get(mode.status, len(place)), -mode.size))


def _line(mode: ModeReport) -> str:
    text = f"{clean(mode.name)}: {_status(mode)}"
    if mode.status not in ("missing", "cured"):
        change = "" if mode.gained is None or mode.lost is None else f" (+{mode.gained} -{mode.lost} since last seen)"
        text += f", {mode.size} of {mode.examples} examples{change}"
    elif mode.left is not None:
        text += f", {mode.left} of its failures left"
    text += "" if mode.since is None else f", first seen in epoch {mode.since}"
    return text + ("" if mode.caption is None else f", {shorten_caption(mode.caption)}")


def _status(mode: ModeReport) -> str:
    """With how often it was looked for in vain."""
    times = "analysis" if mode.missed == 1 else "analyses"
    if mode.status == "cured":
        return f"cured: not seen in {mode.missed} {times} in a row"
    if mode.status == "missing":
        return f"missing: not seen in {mode.missed} {times}" if mode.missed else "not looked for"
    return clean(mode.status)
