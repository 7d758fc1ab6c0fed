"""The example scripts run unchanged."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_without_a_trainer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / "without_a_trainer.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "CV score" in shown
    assert "nine" in shown


def test_cifar10__is_a_module_of_two_classes():
    code = compile((EXAMPLES / "cifar10.py").read_text(), "cifar10.py", "exec")
    assert {"Classifier", "CIFAR10"} <= set(code.co_names)
