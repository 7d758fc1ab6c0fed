"""The training scripts run from the repository, and stay out of the package."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_clip", "train_robust", "train_diffusion"])
def test_script__shows_its_options(name, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts" / "bundled_models" / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert "--output" in capsys.readouterr().out


def test_package__imports_no_script():
    for path in (ROOT / "lightning_failures").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "scripts" for name in names), path
