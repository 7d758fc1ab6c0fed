"""The published figures beside what was found, as JSON and as one HTML page."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from lightning_failures.core.atomic import write_atomically
from lightning_failures.core.text import number
from lightning_failures.recipes.base import Claim, Measured, Recipe
from lightning_failures.stats.intervals import mean_interval


@dataclass(frozen=True)
class Verdict:
    """A claim beside what was found.

    Attributes:
        claim: The claim.
        found: Mean of its measurement over seeds, or None.
        compared: Mean of the measurement that the claim says is lower, or None.
        interval: Interval of the mean over seeds: of the difference where two are compared; None with one seed.
        verdict: "holds", "does not hold", "unclear", "to compare by eye", or "not measured here" and why.
    """

    claim: Claim
    found: float | None
    compared: float | None
    interval: tuple[float, float] | None
    verdict: str


def judge(claim: Claim, measured: Sequence[Measured]) -> Verdict:
    """Compare a claim with what the seeds gave; paired differences where two measurements are compared."""
    keys = [claim.key, *([claim.above] if isinstance(claim.above, str) else [])]
    rows = [[one.figures[key] for key in keys] for one in measured if all(key in one.figures for key in keys)]
    if rows and isinstance(claim.above, float):
        rows = [[*row, claim.above] for row in rows]
    if not rows:
        return Verdict(claim, None, None, None, "not measured here: the run has no such figure")
    table = np.array(rows)
    found, compared = float(table[:, 0].mean()), float(table[:, -1].mean()) if claim.above is not None else None
    values = table[:, 0] - table[:, 1] if claim.above is not None else table[:, 0]
    interval = mean_interval(values)
    if not all(one.complete for one in measured):
        return Verdict(claim, found, compared, interval, "not measured here: these are not the data of the paper")
    if claim.above is None:
        return Verdict(claim, found, compared, interval, "to compare by eye")
    if interval is None:
        return Verdict(claim, found, compared, interval, "unclear: one seed has no interval")
    low, high = interval
    return Verdict(claim, found, compared, interval, "holds" if low > 0 else "does not hold" if high < 0 else "unclear")


def write_result(recipe: Recipe, measured: Sequence[Measured], folder: Path) -> Path:
    """Write ``<name>.json`` and ``<name>.html`` into a folder; returns the path of the page."""
    verdicts = [judge(claim, measured) for claim in recipe.claims]
    content = {
        "recipe": recipe.name,
        "source": recipe.source,
        "claims": [asdict(one) for one in verdicts],
        "seeds": [asdict(one) for one in measured],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{recipe.name}.json", (json.dumps(content, indent=1) + "\n").encode())
    page = folder / f"{recipe.name}.html"
    write_atomically(page, _page(recipe, verdicts, measured).encode())
    return page


def result_text(recipe: Recipe, measured: Sequence[Measured]) -> str:
    """Return claims and figures as lines for the terminal."""
    lines = []
    for one in (judge(claim, measured) for claim in recipe.claims):
        lines.append(f"{one.claim.text}: {one.verdict}")
        lines.append(f"  found {_found(one)}; published: {one.claim.published or '-'} ({one.claim.source})")
    for key in sorted({key for one in measured for key in one.figures}, key=_natural):
        values = [one.figures[key] for one in measured if key in one.figures]
        lines.append(f"{key}: {number(float(np.mean(values)))}")
    for one in measured:
        lines += [f"seed {one.seed}, {name} caption: {text}" for name, text in one.texts.items()]
        lines += [f"{name}: {path}" for name, path in one.files.items()]
    lines += dict.fromkeys(note for one in measured for note in one.notes)
    return "\n".join(lines)


def _found(one: Verdict) -> str:
    if one.found is None:
        return "-"
    text = number(one.found)
    if one.compared is not None:
        text += f" against {number(one.compared)}"
    if one.interval is not None:
        name = "difference " if one.compared is not None else ""
        text += f" ({name}{number(one.interval[0])} to {number(one.interval[1])})"
    return text


def _page(recipe: Recipe, verdicts: Sequence[Verdict], measured: Sequence[Measured]) -> str:
    def cells(values: Sequence[str], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

    claims = [
        cells([one.claim.text, one.claim.published, _found(one), one.verdict, one.claim.source]) for one in verdicts
    ]
    keys = sorted({key for one in measured for key in one.figures}, key=_natural)
    seeds = [f"seed {one.seed}" for one in measured]
    head = cells(["measurement", *seeds], "th")
    figures = [cells([key, *(number(one.figures.get(key)) for one in measured)]) for key in keys]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in dict.fromkeys(n for one in measured for n in one.notes))
    reports = "".join(
        f'<li><a href="{html.escape(quote(one.report))}">report of seed {one.seed}</a></li>' for one in measured
    )
    names = list(dict.fromkeys(name for one in measured for name in one.texts))
    captions = [cells([name, *(one.texts.get(name, "") for one in measured)]) for name in names]
    files = "".join(_shown(name, path) for one in measured for name, path in one.files.items())
    claim_head = cells(["claim", "published", "found", "verdict", "source"], "th")
    parts = [
        f"<h1>{html.escape(recipe.name)}</h1><p>{html.escape(recipe.summary)}. {html.escape(recipe.source)}</p>",
        f"<h2>Claims</h2><table>{claim_head}{''.join(claims)}</table>" if claims else "",
        f"<h2>Measurements on the test set</h2><table>{head}{''.join(figures)}</table>",
        f"<h2>Captions</h2><table>{cells(['class', *seeds], 'th')}{''.join(captions)}</table>" if captions else "",
        f"<h2>Pictures and tables</h2>{files}" if files else "",
        f"<h2>Reports</h2><ul>{reports}</ul>",
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(recipe.name)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _shown(name: str, path: str) -> str:
    """Return a picture with its name, or the link to another file."""
    link, text = html.escape(quote(path)), html.escape(name)
    if not path.endswith(".png"):
        return f'<p><a href="{link}">{text}</a></p>'
    return f'<figure><figcaption>{text}</figcaption><img src="{link}" alt="{text}"></figure>'


def _natural(name: str) -> list[tuple[bool, float, str]]:
    """Return the key that sorts names by their numbers, not digit by digit.

    >>> sorted(["top 100", "top 50", "a"], key=_natural)
    ['a', 'top 50', 'top 100']
    """
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(part[:1].isdigit(), float(part) if part[:1].isdigit() else 0.0, part) for part in parts]


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
       color-scheme: light dark }
table { border-collapse: collapse; width: 100% }
figure { margin: 1rem 0; overflow-x: auto }
td, th { border-bottom: 1px solid #8886; padding: .4rem; text-align: left; vertical-align: top }
"""
