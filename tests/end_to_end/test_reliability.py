"""docs/reliability.md names tests that exist, and the memory of a long run does not grow."""

from __future__ import annotations

import ast
import functools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
PITFALLS = 38

sys.path.append(str(ROOT / "benchmarks"))  # scripts

import soak  # noqa: E402


def section(title: str, page: str) -> str:
    return page.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def rows(page: str) -> dict[int, str]:
    """Return the last cell of each row of the table of pitfalls, by number."""
    lines = section("What breaks plug-ins like this one", page).splitlines()
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\|\s*\d+\s*\|", line)
    ]
    assert all(len(row) == 4 for row in cells), [row for row in cells if len(row) != 4]
    assert len(cells) == len({row[0] for row in cells})
    return {int(row[0]): row[-1] for row in cells}


@functools.lru_cache
def names_in(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def missing(page: str) -> list[str]:
    """Return the tests that a page names as ``tests/test_x.py::test_name`` and that do not exist."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    return [
        f"{path}::{name}" for path, name in named if not (ROOT / path).is_file() or name not in names_in(ROOT / path)
    ]


def test_pitfalls__every_one_has_a_test_or_a_reason():
    found = rows(PAGE.read_text())
    assert list(found) == list(range(1, PITFALLS + 1))
    wrong = [n for n, cell in found.items() if not re.search(r"`tests/\S+::test_\w+`|^no test: \S", cell)]
    assert wrong == []


def test_page__names_tests_that_exist():
    assert missing(PAGE.read_text()) == []


def test_page__bare_names_are_tests_too():
    """Other sections name tests without their file."""
    everywhere = set().union(*(names_in(path) for path in (ROOT / "tests").rglob("test_*.py")))
    named = set(re.findall(r"`(test_\w+__\w+)`", PAGE.read_text()))
    assert named - everywhere == set()


@pytest.mark.parametrize("name", ["tests/end_to_end/test_pitfalls.py::test_x", "tests/test_nothing.py::test_x"])
def test_page__this_test_can_fail(name):
    assert missing(f"`{name}` and `tests/end_to_end/test_reliability.py::test_page__this_test_can_fail`") == [name]


# -- long runs -------------------------------------------------------------------------------------------------


def test_slope__of_a_line_and_of_noise():
    assert soak.slope(range(0, 500, 5), [7.0] * 100) == (0, 0)
    rate, error = soak.slope(range(0, 500, 5), [0.02 * x + (-1) ** x for x in range(0, 500, 5)])
    assert rate == pytest.approx(2, abs=2 * error)
    assert 0 < error < 0.5


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="reads /proc")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("variant", "images"), [("interventions", 256), ("new images", 64)])
def test_soak__memory_and_files_stay_flat(tmp_path, variant, images):
    """Run ``benchmarks/soak.py`` for sixteen epochs instead of five hundred."""
    samples = soak.soak(variant, tmp_path, epochs=16, every=1, train_size=64, val_size=images)["samples"]
    held = {name: np.array([row[1 + k] for row in samples[6:]]) for k, name in enumerate(soak.MEASURES)}
    assert set(np.diff(held["files"])) == set(np.diff(held["threads"])) == {0}
    for name, allowed in (("memory", 15), ("tensors", 120), ("objects", 2000)):
        # allowed: classes with late captions, and two shards of new images a pass
        assert np.median(held[name][-5:]) - np.median(held[name][:5]) < allowed, name
    assert held["reports"][-1] > held["reports"][0] > 0  # analyses took place
