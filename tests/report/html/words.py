"""The numbers in sentences, and whether the records that they speak of hold them; independent of the package."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

_NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:,\d{3})*(?:\.\d+)?(?:e-\d+)?(?: %| points)?(?!\w)")
_CONSTANTS = {"95 %", "50 %", "50.0 %", "0", "1", "0.0 %", "100.0 %"}
"""The level of intervals, a coin toss, the ends of a scale, and shares that rounding leaves nothing to compare of."""

_MARKDOWN = {
    "Findings": "findings",
    "Pattern shared by classes": "shared",
    "Failure diary": "modes",
    "Confusions": "confusions",
    "Slices that fail more often than the others": "slices",
    "Interventions": "interventions",
    "Pinned slices": "pins",
}
"""What the sections of report.md speak of, by the key in report.json."""

_OUTSIDE = """() => {
  const found = [];
  const walk = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const parent = walk.currentNode.parentElement;
    if (parent.closest('data, script, style, svg, code, form, .chart, .tiles, [aria-hidden=true]')) continue;
    if (parent.closest('#examples, #map, #terms')) continue;
    const scope = parent.closest('[id^=finding-], [id^=class-], [id^=tree-], section, header');
    if (/\\d/.test(walk.currentNode.data)) found.push([scope.id, walk.currentNode.data]);
  }
  return found;
}"""


def texts_outside(page: Any) -> list[list[str]]:
    """The texts with digits that no ``data`` element marks up, each with the id of its part of the page.

    Scripts fill the examples and the map; the terms speak of no run.
    """
    return page.evaluate(_OUTSIDE)


def page_flaws(page: Any, report: dict[str, Any], before: dict[str, Any] | None = None) -> list[str]:
    """The numbers in sentences of the page that the records of their part of the page do not hold."""
    parts = {"finding": "findings", "class": "classes", "tree": "groups"}
    wrong = []
    for scope, text in texts_outside(page):
        kind, _, index = scope.partition("-")
        if kind in parts and index.isdecimal():
            records = report[parts[kind]][int(index)]
            records = with_derived(records, before) if kind == "class" else records
        else:
            key = {"diary": "modes", "summary": ""}.get(scope, scope)
            records = report["methods"].get(key) or report.get(key) or report
        wrong += [f"{scope}: {one} in {' '.join(text.split())[:200]!r}" for one in unfounded(text, records)]
    return wrong


def text_flaws(text: str, report: dict[str, Any], before: dict[str, Any] | None = None) -> list[str]:
    """The numbers in Markdown or in the terminal that neither their section nor a class that is named holds.

    The number of epochs is that of the last one and one more; how many lines are left out, no record says.

    Args:
        text: The lines.
        report: The records of report.json.
        before: Those of the analysis before.
    """
    wrong, title = [], ""
    whole = report | {"epochs": (report["epoch"] or 0) + 1, "group_means": group_means(report)}
    for line in text.splitlines():
        title = line.strip("# :") if re.fullmatch(r"#+ .*|[A-Z][^:]*:", line) else title
        if re.search(r"\d+ more(?: are)? in report\.json", line):
            continue
        line = re.sub(r"\S*/\S*", " ", line).partition(" Next: ")[0]  # paths, and the code of what to do next
        named = [entry["name"] for entry in report["classes"] if re.search(rf"\b{re.escape(entry['name'])}\b", line)]
        records: list[Any] = [with_derived(one, before) for one in report["classes"] if one["name"] in named]
        records += [group for group in report["groups"] if group["class"] in named]
        notes = [report["notes"]]  # stand in any section
        if title in _MARKDOWN:
            records.append(report[_MARKDOWN[title]])
        elif "parse decision layer" in title:
            records.append(report["methods"])
        elif re.match(r"\(1\) |\d+\. ", line):  # the end of a training; the terminal
            records.append(report["findings"])
        if not records or re.match(r"\* \w+ groups: |\* \*\*feature|!\[", line):
            records.append(whole)
        wrong += [f"{title}: {one} in {line[:200]!r}" for one in unfounded(line, records + notes)]
    return wrong


def group_means(report: dict[str, Any]) -> list[float]:
    """The mean held-out ALER - BER of the groups of each kind."""
    gains: dict[str, list[float]] = {}
    for group in report["groups"]:
        if group["skipped"] is None and group["heldout_aler_minus_ber"] is not None:
            gains.setdefault(group["grouping"], []).append(group["heldout_aler_minus_ber"])
    return [sum(of_kind) / len(of_kind) for of_kind in gains.values()]


def with_derived(entry: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """A class with what texts compute from its record: the flagged share, and the change since the analysis before."""
    derived = [entry["flagged"] / (entry.get("looked_at") or entry["examples"])] if entry["flagged"] else []
    former = [one["accuracy"] for one in (before or {"classes": []})["classes"] if one["name"] == entry["name"]]
    if former and None not in (former[0], entry["accuracy"]):
        derived.append(former[0] - entry["accuracy"])
    return entry | {"derived": derived}


def numbers_in(text: str) -> list[str]:
    """The numbers of a text as they are written, with a plain minus sign and plain spaces."""
    return [found.strip() for found in _NUMBER.findall(plain(text))]


def plain(text: str) -> str:
    """A text with ASCII signs in place of typographic ones."""
    text = re.sub(r"[\u00a0\u202f]", " ", text)
    return text.replace("\u2212", "-").replace("\u2264", "<=").replace("\u00b1", "+-")


def unfounded(text: str, records: Any) -> list[str]:
    """The numbers of a text that no number in the records is written as."""
    if not re.search(r"\d", text):
        return []
    names = sorted((one for one in strings(records) if re.search(r"\d", one)), key=len, reverse=True)
    text = plain(text)
    for name in names:  # names, rules and reasons may hold digits of their own
        text = text.replace(plain(name), " ")
    text = re.sub(r"\(\d+ of \d+ steps", " ", text)  # of a feature attack
    wanted = set(numbers_in(text)) - _CONSTANTS
    for value in values(records):
        if not wanted:
            break
        wanted.difference_update(forms(value))
    return sorted(wanted)


def forms(value: float) -> Iterator[str]:
    """The ways to write a number: as a count, a score, a share or its complement, a difference, a p-value."""
    if isinstance(value, int):
        yield from (str(value), f"{value:,}")
    yield from (f"{value:.1f}", f"{value:,.1f}", f"{value:.2f}", f"{value:+.2f}", f"{value:.3g}", f"{value:.2g}")
    for share in (value, 1 - value):
        for text in (f"{100 * share:.1f}", f"{100 * share:+.1f}"):
            yield from (text, f"{text} %", f"{text} points")
    if 0 <= value <= 0.001:
        yield "0.001"


def values(record: Any) -> Iterator[float]:
    """All numbers in a record, and the lengths of its lists."""
    if isinstance(record, dict):
        record = list(record.values())
    if isinstance(record, list):
        yield len(record)
        for one in record:
            yield from values(one)
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield record


def strings(record: Any) -> Iterable[str]:
    """All texts in a record."""
    if isinstance(record, dict):
        record = list(record.values())
    if isinstance(record, list):
        return [text for one in record for text in strings(one)]
    return [record] if isinstance(record, str) else []
