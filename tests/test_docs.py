"""Documents are true: links lead somewhere, names and options exist, code compiles, the README stays short."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from lightning_failures import FailureModes, callback

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_failures"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SCRIPTS = sorted(
    path for folder in ("benchmarks", "docs", "examples", "scripts") for path in (ROOT / folder).rglob("*.py")
)
README = ROOT / "README.md"
MAX_README_LINES = 150

BANNED_WORDS = ("told", "anew", "nobody", "likewise", "knows no", "cannot be had", "so many", "what is told")
"""Words that no sentence of the project uses: the field has better ones."""

BANNED = re.compile(r"\b(" + "|".join(word.replace(" ", r"\s+") for word in BANNED_WORDS) + r")\b", re.IGNORECASE)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def snippets(page: Path) -> list[str]:
    """The inline code of a page, without its fenced blocks."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def keywords(source: str, function: str) -> set[str]:
    """The keyword arguments that a source passes to a function."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    named = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == function)
    return {keyword.arg for call in named for keyword in call.keywords if keyword.arg is not None}


def section(page: Path, title: str) -> str:
    """The text between a heading of the second level and the next one."""
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page.read_text(), re.DOTALL | re.MULTILINE).group(1)


# -- links, names, code ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links__lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names__can_be_imported(page):
    for name in re.findall(r"`lightning_failures\.([a-z_.]+)\.([A-Za-z_]+)`", page.read_text()):
        module, attribute = name
        assert hasattr(importlib.import_module(f"lightning_failures.{module}"), attribute), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files__exist(page):
    for snippet in snippets(page):
        if re.fullmatch(r"(lightning_failures|tests|benchmarks|docs|configs|examples|scripts)/[\w./-]+", snippet):
            assert (ROOT / snippet).exists(), snippet
    for script in re.findall(r"(?:benchmarks|docs|examples)/\w+\.py", page.read_text()):
        assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks__compile(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks__import_names_that_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE.name):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.relative_to(ROOT).as_posix())
def test_scripts__import_names_that_exist(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(PACKAGE.name):
            module = importlib.import_module(node.module)
            names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert [name for name in names if find_spec(f"{node.module}.{name}") is None] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks__pass_options_that_exist(page):
    shorthands = {"failed_below", "every_n_validations", "min_coverage"}  # of options in groups; not deprecated
    options = set(inspect.signature(FailureModes).parameters) | shorthands
    for block in blocks(page, "python"):
        assert keywords(block, "FailureModes") <= options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets__group_options_that_exist(page):
    for snippet in snippets(page):
        for group, option in re.findall(r"\b(\w+Options)\((\w+)=", snippet):
            assert option in inspect.signature(getattr(callback, group)).parameters, snippet


# -- the README --------------------------------------------------------------------------------------------------


def test_readme__is_short():
    assert len(README.read_text().splitlines()) <= MAX_README_LINES


def test_readme__quick_start_has_two_commands():
    quick_start = section(README, "Quick start")
    commands = [
        line for block in re.findall(r"```\w*\n(.*?)```", quick_start, re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 2
    assert "lightning-failures demo" in commands[0]
    assert "pytest" in commands[1]


def test_readme__options_exist():
    cells = [row.split("|")[2] for row in section(README, "Options").splitlines() if row.startswith("| ")][2:]
    named = {name for cell in cells for name in re.findall(r"`(\w+)=", cell)}
    assert len(named) > 10
    assert named <= set(inspect.signature(FailureModes).parameters)


def test_readme__shows_images_that_fail():
    assert "(docs/images/failing-images.png)" in README.read_text()


# -- the project -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs__are_yaml_with_the_callback(path):
    callbacks = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    assert callbacks[0]["class_path"] == "lightning_failures.FailureModes"


def test_citation__agrees_with_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["authors"] == [{"name": "lightning_failures contributors"}]
    assert [citation["version"], citation["license"]] == [project["version"], project["license"]]
    assert citation["abstract"] == project["description"]
    assert [reference["year"] for reference in citation["references"]] == [2023, 2021, 2021]


def test_repository__names_no_paths_of_one_machine():
    for path in [*ROOT.glob("*.*"), *PACKAGE.rglob("*.py"), *(ROOT / "docs").rglob("*")]:
        if path.is_file() and path.suffix in {".py", ".md", ".ipynb", ".toml", ".yaml", ".cff"}:
            assert not re.search(r"/(home|root|work|Users)/\w", path.read_text()), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_english__banned_words(page):
    assert BANNED.findall(page.read_text()) == []


OLD_NAMES = {"core/moved.py"}
"""Names the import paths of before, which are words of their own."""

UNFINISHED = {
    *("analysis/analyse.py", "analysis/diary.py", "data/example_table.py"),
}
"""Sources whose sentences are still to be rewritten."""


@pytest.mark.parametrize("suffix", [".py", ".j2", ".js", ".yaml"])
def test_english__banned_words_in_the_package(suffix):
    excused = {PACKAGE / name for name in OLD_NAMES | UNFINISHED}
    sources = sorted(set(PACKAGE.rglob(f"*{suffix}")) - excused)
    assert {str(path): found for path in sources if (found := BANNED.findall(path.read_text()))} == {}


def test_english__banned_words_in_notebooks():
    notebooks = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 3
    assert {path.name: found for path in notebooks if (found := BANNED.findall(path.read_text()))} == {}


def test_notebooks__are_stored_without_outputs():
    for path in (ROOT / "docs" / "notebooks").glob("*.ipynb"):
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_english__this_test_can_fail():
    assert BANNED.findall("It is told, for want of\nanew; so\nmany retold threshold") == ["told", "anew", "so\nmany"]
