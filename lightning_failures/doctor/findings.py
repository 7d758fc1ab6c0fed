"""The results of checks, formatted for people (lines of at most 100 characters) and for machines (JSON)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from lightning_failures.core.text import clean
from lightning_failures.errors import FailureModesError

Status = Literal["ok", "warning", "problem", "skipped"]
Subject = TypeVar("Subject")

WIDTH = 100
_STATUS, _CHECK = 9, 16


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Attributes:
        status: "ok"; "warning": works, but not as well as it could; "problem": does not work; "skipped".
        message: The result.
        remedy: What to do about it, or empty.
        facts: The numbers in the message, for machines.
        check: Name of the check.
    """

    status: Status
    message: str
    remedy: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    check: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python values, the name of the check first."""
        values = asdict(self)
        return {"check": values.pop("check")} | values


def ok(message: str, **facts: Any) -> Finding:
    """Return a finding that something works."""
    return Finding("ok", message, facts=facts)


def warning(message: str, remedy: str = "", **facts: Any) -> Finding:
    """Return a finding that something works, but not as well as it could."""
    return Finding("warning", message, remedy, facts)


def problem(message: str, remedy: str = "", **facts: Any) -> Finding:
    """Return a finding that something does not work."""
    return Finding("problem", message, remedy, facts)


def skipped(message: str) -> Finding:
    """Return a finding that there is nothing to check, or no way to check it."""
    return Finding("skipped", message)


def run_check(check: str, examine: Callable[[Subject], Iterable[Finding]], subject: Subject) -> Iterator[Finding]:
    """Yield the findings of one check; an exception becomes a problem.

    >>> def divide(by):
    ...     yield ok(f"1 / {by} = {1 / by}")
    >>> [finding.status for by in (2, 0) for finding in run_check("division", divide, by)]
    ['ok', 'problem']
    """
    try:
        for finding in examine(subject):
            yield replace(finding, check=check)
    except Exception as error:
        own = isinstance(error, FailureModesError)
        yield Finding("problem", str(error) if own else f"{type(error).__name__}: {error}", check=check)


def table_lines(finding: Finding, *, after: Finding | None = None) -> list[str]:
    r"""Return one finding as lines of text; its remedy starts on a line of its own.

    Args:
        finding: The finding.
        after: The finding before it; the name of a check is shown once.

    >>> print("\n".join(table_lines(replace(problem("no disk", "Buy one."), check="cache"))))
    problem  cache           no disk
                             -> Buy one.
    """
    name = "" if after is not None and after.check == finding.check else finding.check
    head = f"{finding.status:<{_STATUS}}{name:<{_CHECK}}"
    indent = " " * (_STATUS + _CHECK)
    lines = _wrapped(finding.message, head, indent)
    return lines + (_wrapped(finding.remedy, f"{indent}-> ", f"{indent}   ") if finding.remedy else [])


def verdict_lines(findings: Sequence[Finding], seconds: float | None = None) -> list[str]:
    """Return the final verdict as lines of text.

    >>> disk = replace(warning("nearly full"), check="cache")
    >>> verdict_lines([ok("a"), disk, skipped("c")], 2.4)
    ['Ready, with 1 warning: cache. 3 findings in 2 s.']
    """
    counts = []
    for status in ("problem", "warning"):
        found = [finding.check for finding in findings if finding.status == status]
        if found:
            counts.append(f"{len(found)} {status}{'s' if len(found) > 1 else ''}: {', '.join(dict.fromkeys(found))}")
    ready = all(finding.status != "problem" for finding in findings)
    verdict = ", with ".join(["Ready" if ready else "Not ready", *([" and ".join(counts)] if counts else [])])
    time = "" if seconds is None else f" in {seconds:.0f} s"
    return _wrapped(f"{verdict}. {len(findings)} finding{'s' if len(findings) > 1 else ''}{time}.", "", "")


def _wrapped(text: str, first: str, others: str) -> list[str]:
    lines = textwrap.wrap(
        clean(text, 2000), WIDTH, initial_indent=first, subsequent_indent=others, break_on_hyphens=False
    )
    return lines or [first.rstrip()]
