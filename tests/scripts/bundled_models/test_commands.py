"""The training scripts run from the repository, and stay out of the package."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_clip", "train_robust", "train_diffusion"])
def test_script__shows_its_options(name):
    command = [sys.executable, "-W", "ignore", "-m", f"scripts.bundled_models.{name}", "--help"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert "--output" in run.stdout


def test_package__imports_no_script():
    for path in (ROOT / "lightning_failures").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "scripts" for name in names), path
