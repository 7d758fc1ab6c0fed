"""The command ``study``: from a run to a page, from answers to tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lightning_failures.cli import main
from lightning_failures.cli.options import STUDY_TASKS
from lightning_failures.studies import TASKS, annotate, mixed, questionnaire_questions

RUN = str(Path(__file__).parents[1] / "compatibility" / "run")


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["lightning-failures"])


def test_make_and_score__a_questionnaire(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "make", RUN, "--task", "questionnaire"]) == 0
    assert "9 questions (0 of them controls): study-questionnaire.html" in capsys.readouterr().out
    assert "<script" in (tmp_path / "study-questionnaire.html").read_text()
    answers = annotate(mixed("questionnaire", questionnaire_questions()), np.eye(2))
    (tmp_path / "answers.json").write_text(json.dumps(answers.to_dict()))
    assert main(["study", "score", "answers.json", "--json", "scores.json"]) == 0
    assert "statement-1 (1): agree 3.0" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["task"] == "questionnaire"


def test_make__describe_from_a_stored_run(tmp_path, capsys):
    page = tmp_path / "describe.html"
    status = main(["study", "make", RUN, "--task", "describe", "--controls", "1", "--output", str(page)])
    shown = capsys.readouterr()
    assert (status, page.is_file()) in ((0, True), (1, False))
    assert status == 0 or "holds no pictures of features" in shown.err


def test_errors__are_one_line(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    for arguments, status in (
        (["study", "make", RUN, "--task", "simulate"], 1),
        (["study", "score", str(tmp_path / "x.json")], 1),
        (["study", "score", str(tmp_path / "nowhere.json")], 1),
    ):
        assert main(arguments) == status
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit) as stop:
        main(["study", "make", RUN, "--task", "guess"])
    assert stop.value.code == 2


def test_tasks__are_those_of_the_room():
    assert STUDY_TASKS == TASKS
