"""The entry point: help, unknown commands, exit statuses, and what it costs to answer."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys

import pytest

from lightning_failures.cli import main
from lightning_failures.cli.commands import COMMANDS
from lightning_failures.data.report import ClassReport, FailureReport

HEAVY = ("torch", "lightning", "numpy", "sklearn", "jsonargparse")


def test_help__names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS)


def test_unknown_command__shows_the_usage(capsys):
    assert main(["trian"]) == 2
    assert "no command 'trian'" in capsys.readouterr().err
    assert main(["reprot"]) == 2
    assert capsys.readouterr().err.splitlines()[0].endswith("Did you mean report?")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_help__of_each_command(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.function])
def test_commands__without_model_are_functions(name):
    module, _, function = COMMANDS[name].function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_report__of_a_run(tmp_path, capsys):
    entry = ClassReport("cat", 9, accuracy=0.5, cv_score=0.9, p_value=0.001, pattern=True)
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures" / "report.json").write_text(FailureReport(9, 0.5, (entry,)).to_json())
    assert main(["report", str(tmp_path)]) == 0
    assert "cat" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "{", "[]", '{"classes": 3}'])
def test_report__bad_file_is_one_clear_line(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 1
    assert "report" in capsys.readouterr().err


# -- what it costs ---------------------------------------------------------------------------------------------------


def run(code: str) -> tuple[float, list[str]]:
    """Run a statement in a Python of its own; return its CPU seconds and the heavy packages that it loaded."""
    report = (
        "\nimport json, resource, sys"
        "\nused = resource.getrusage(resource.RUSAGE_SELF)"
        f"\nprint(json.dumps([used.ru_utime + used.ru_stime, [name for name in {HEAVY} if name in sys.modules]]))"
    )
    found = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    seconds, loaded = json.loads(found.stdout.splitlines()[-1])
    return seconds, loaded


@pytest.mark.parametrize("arguments", [["--help"], ["trian"], []])
def test_shell__answers_within_a_second_of_processor_time(arguments):
    code = f"from lightning_failures.cli.main import main\nmain({arguments})"
    for attempt in range(2):  # a second one for a machine that is busy
        bare, _ = run("pass")
        seconds, loaded = run(code)
        assert loaded == []
        if seconds - bare <= 1:
            break
        assert attempt == 0, f"{seconds - bare:.1f} s"


def test_shell__this_test_can_fail():
    assert "numpy" in run("import numpy")[1]
