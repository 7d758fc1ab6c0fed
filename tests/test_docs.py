"""Documents say what is there: links lead somewhere, names can be imported, the quick start has two commands."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links__lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names__can_be_imported(page):
    for name in re.findall(r"`lightning_failures\.([a-z_.]+)\.([A-Za-z_]+)`", page.read_text()):
        module, attribute = name
        assert hasattr(importlib.import_module(f"lightning_failures.{module}"), attribute), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks__compile(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(block, str(page), "exec")


def test_readme__every_benchmark_exists():
    for script in re.findall(r"benchmarks/\w+\.py", (ROOT / "README.md").read_text()):
        assert (ROOT / script).is_file(), script


def test_readme__quick_start_has_two_commands():
    section = re.search(r"## Quick start\n(.*?)\n## ", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    commands = [line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines()]
    assert len(commands) == 2
    assert "lightning-failures demo" in commands[0]
    assert "pytest" in commands[1]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs__are_yaml_with_the_callback(path):
    callbacks = yaml.safe_load(path.read_text())["trainer"]["callbacks"]
    assert callbacks[0]["class_path"] == "lightning_failures.FailureModes"


def test_repository__tells_no_paths_of_one_machine():
    for path in [*ROOT.glob("*.*"), *(ROOT / "lightning_failures").rglob("*.py"), *(ROOT / "docs").glob("*")]:
        if path.is_file() and path.suffix in {".py", ".md", ".toml", ".yaml"}:
            assert not re.search(r"/(home|root|work|Users)/\w", path.read_text()), path
