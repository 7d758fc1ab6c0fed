"""What the numbers of a page say they are, looked up in the files of the run; independent of the package."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file


def documents(folder: Path) -> dict[str, Any]:
    """What ``data-of`` speaks of, from the files in ``failures/``."""
    analyses = sorted(folder.glob("epoch=*"), key=lambda path: int(path.name.split("step=")[1]))
    examples = load_file(folder / "examples.safetensors")
    return {
        "report": json.loads((folder / "report.json").read_text()),
        "history": [json.loads((path / "report.json").read_text()) for path in analyses],
        "examples": examples,
        "matrix": counts(examples["labels"].tolist(), examples["predictions"].tolist()),
    }


def counts(labels: list[int], predictions: list[int]) -> dict[str, dict[str, int]]:
    """How many examples of each label have each prediction."""
    found: dict[str, dict[str, int]] = {}
    for label, prediction in zip(labels, predictions, strict=True):
        row = found.setdefault(str(label), {})
        row[str(prediction)] = row.get(str(prediction), 0) + 1
    return found


def looked_up(of: str, known: dict[str, Any]) -> float:
    """``report/classes/3/accuracy``, ``1 - path`` or ``path - path``."""
    one, _, other = of.rpartition(" - ")
    if one:
        return (1.0 if one == "1" else looked_up(one, known)) - looked_up(other, known)
    found: Any = known
    for part in of.split("/"):
        found = found[part] if isinstance(found, dict) else found[int(part)]
    return float(found)


def shown(text: str) -> tuple[float, float]:
    """The number that people read, and half of its last digit."""
    plain = text.replace("\u2212", "-").replace("\u202f", "").replace(",", "").strip()
    percent = plain.endswith(("%", "points"))
    number = Decimal(re.sub(r"[%\s]|points", "", plain))
    scale = 100 if percent else 1
    return float(number) / scale, 0.5 * 10.0 ** int(number.as_tuple().exponent) / scale


def wrong_numbers(found: list[list[str]], known: dict[str, Any]) -> list[str]:
    """Those of (text, value, of) that differ from the files."""
    wrong = []
    for text, value, of in found:
        truth = looked_up(of, known)
        if text.startswith("\u2264"):  # a p-value that is no larger
            text = truth if truth <= float(text[1:]) else text
        number, half = shown(str(text).removeprefix("\u2264"))
        if abs(float(value) - truth) > 1e-6 * max(1, abs(truth)) or abs(number - truth) > half * (1 + 1e-6) + 1e-9:
            wrong.append(f"{text} ({value}) is not {of} = {truth}")
    return wrong


_UNFOLD = """document.querySelectorAll('details').forEach((one) => {
  const siblings = [...one.closest('section').querySelectorAll('details.card')];
  if (siblings.indexOf(one) < 2) one.open = true;
})"""
"""Unfolds everything but the third card of a section and later ones, which are like the first two."""


def flaws(page: Any) -> list[Any]:
    """What is wrong with the whole page on a wide light screen, and on a narrow dark one, unfolded.

    Colours depend on the theme alone and layout on the width alone, so two of the four combinations see everything.

    Returns:
        Serious violations of accessibility, and widths that the page does not fit into.
    """
    from axe_playwright_python.sync_playwright import Axe

    found: list[Any] = []
    page.evaluate(_UNFOLD)
    for width, theme in ((1600, "light"), (360, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        if page.evaluate("document.documentElement.scrollWidth") > width:
            found.append(f"wider than {width} px")
        violations = Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
        serious = [one for one in violations if one["impact"] in ("serious", "critical")]
        found += [(theme, one["id"], [node["target"] for node in one["nodes"][:3]]) for one in serious]
    return found


def first_screen(page: Any) -> dict[str, Any]:
    """What the verdict shows of itself without scrolling: its text, and how many wrong images, right ones and rates."""
    return page.evaluate("""() => {
      const inside = (e) => {
        const box = e.getBoundingClientRect();
        const [down, across] = [box.top >= 0 && box.bottom <= innerHeight, box.left >= 0 && box.right <= innerWidth];
        return box.width > 0 && box.height > 0 && down && across;
      };
      const all = (selector) => [...document.querySelectorAll(selector)].filter(inside);
      return {
        text: all('#findings h3, #findings p, #findings dt, #findings dd').map((e) => e.innerText).join('\\n'),
        wrong: all('#findings .wrong img').length,
        right: all('#findings .right img').length,
        rates: all('#findings .three data').length,
      };
    }""")
