"""The package keeps to docs/architecture.md: which way imports point, what importing costs, what is public."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lightning_failures"
HEAVY = (
    *("open_clip", "wandb", "matplotlib", "timm", "diffusers", "pytorch_lightning", "tensorboard", "numba"),
    *("altair", "jinja2", "vl_convert"),
)


def stated_order() -> dict[str, int]:
    """Top-level module -> line of the list in docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    listing = re.search(r"## Import direction.*?```\n(.*?)```", text, re.DOTALL).group(1)
    return {name.strip(): row for row, line in enumerate(listing.splitlines()) for name in line.split(",")}


def imports(source: str) -> list[str]:
    """Top-level modules of the package that a source imports when it runs (type-checking imports apart)."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lightning_failures."):
            names.append(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "lightning_failures":
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lightning_failures.")]
    return names


def wrong_way(module: str, source: str, order: dict[str, int]) -> list[str]:
    """The imports that point downwards."""
    return [name for name in imports(source) if name != module and order[name] >= order[module]]


SOURCES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]
MODULES = [path for path in SOURCES if not path.name.startswith("train_")]  # scripts import what they like


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports__point_up(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert wrong_way(module, path.read_text(), stated_order()) == []


def test_imports__this_test_can_fail():
    assert wrong_way("errors", "from lightning_failures.cli import main", stated_order()) == ["cli"]


def test_scripts__are_imported_by_nobody():
    for path in SOURCES:
        scripts_may = path.name.startswith("train_")  # one another
        assert scripts_may or not re.search(r"import .*train_|from .*train_\w+ import", path.read_text()), path


def loaded_on_top(statement: str) -> set[str]:
    """Top-level modules that a statement loads, beyond those that Lightning itself loads."""
    code = (
        "import sys, json\nimport lightning.pytorch\nbefore = set(sys.modules)\n"
        f"{statement}\nprint(json.dumps(sorted({{m.split('.')[0] for m in set(sys.modules) - before}})))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_import__loads_nothing_heavy():
    assert not loaded_on_top("import lightning_failures, lightning_failures.cli") & set(HEAVY)


@pytest.mark.slow
def test_import__this_test_can_fail():
    assert "timm" in loaded_on_top("import timm.version") & set(HEAVY)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_all__names_exist_and_are_documented(path):
    name = ".".join(("lightning_failures", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", []):
        assert hasattr(module, public), public
