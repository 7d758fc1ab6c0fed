"""Figures of the evidence page are those that their commands wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
EVIDENCE = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
FIGURE = re.compile(r"(?<![\w.])\d[\d,]*\.\d+(?: %)?")
DIRECT = {"counterfactuals": 20, "directions": 27, "generator": 8, "robust_twins": 3}
"""Least number of figures of benchmarks whose tables quote raw figures, or the mean, median or range of a list."""


def figures_of(name: str) -> list[str]:
    """The figures with decimals in the tables that follow a command of a benchmark."""
    found, commands = [], []
    for line in EVIDENCE.splitlines():
        if line.startswith("## "):
            commands = []
        commands = re.findall(r"benchmarks/(\w+)\.py", line) or commands
        if line.startswith("|") and commands == [name]:
            cells = line.strip("|").split("|")[1:]
            found += [figure for cell in cells for figure in FIGURE.findall(cell)]
    return found


def scalars(record: Any) -> Iterator[float]:
    """The numbers in a list, and in the lists in it."""
    for one in record:
        if isinstance(one, list):
            yield from scalars(one)
        elif isinstance(one, int | float) and not isinstance(one, bool):
            yield one


def raw(record: Any) -> Iterator[float]:
    """All numbers of a file, with the mean, the median and the ends of each list of numbers."""
    if isinstance(record, dict):
        record = list(record.values())
    if isinstance(record, list):
        numbers = list(scalars(record))
        yield from (f(numbers) for f in (fmean, median, min, max) if numbers)
        for one in record:
            yield from raw(one)
    elif isinstance(record, int | float) and not isinstance(record, bool):
        yield float(record)


def is_among(figure: str, numbers: list[float]) -> bool:
    """Whether some number, or a hundred times it, is written as a figure."""
    text = figure.rstrip(" %").replace(",", "")
    decimals = len(text.partition(".")[2])
    return any(f"{scale * number:.{decimals}f}" == text for number in numbers for scale in (1, 100))


@pytest.mark.parametrize("name", DIRECT)
def test_figures__are_in_the_results(name):
    numbers = list(raw(json.loads((RESULTS / f"{name}.json").read_text())))
    figures = figures_of(name)
    assert len(figures) >= DIRECT[name]
    assert [figure for figure in figures if not is_among(figure, numbers)] == []


def test_figures__others_are_not_in_the_results():
    """Of figures that are a few percents off, most are missed, so the test above can fail."""
    numbers = list(raw(json.loads((RESULTS / "generator.json").read_text())))
    off = [f"{1.07 * float(figure.rstrip(' %')):.2f}" for figure in figures_of("generator")]
    assert sum(is_among(figure, numbers) for figure in off) < len(off) / 2


def test_results__each_file_is_quoted_beside_its_command():
    pages = EVIDENCE + "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md"))
    named = set(re.findall(r"benchmarks/(\w+)\.py", pages)) | set(re.findall(r"results/(\w+)\.json", pages))
    of_others = {"diagnosis_fit", "diary_held_out"}  # a second run of the same script
    assert {path.stem for path in RESULTS.glob("*.json")} - of_others <= named


def test_commands__of_the_evidence_exist():
    commands = set(re.findall(r"(?:benchmarks|scripts)/[\w/]+\.py", EVIDENCE))
    assert len(commands) > 15
    assert [command for command in sorted(commands) if not (ROOT / command).is_file()] == []
