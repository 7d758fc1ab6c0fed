"""The example scripts run unchanged."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_without_a_trainer(tmp_path):
    script = EXAMPLES / "without_a_trainer.py"
    run = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    assert "CV score" in run.stdout
    assert "nine" in run.stdout


def test_cifar10__is_a_module_of_two_classes():
    code = compile((EXAMPLES / "cifar10.py").read_text(), "cifar10.py", "exec")
    assert {"Classifier", "CIFAR10"} <= set(code.co_names)
