"""The command ``study``: from a run to a page, from answers to tables."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lightning_failures.cli import main
from lightning_failures.cli.options import STUDY_TASKS
from lightning_failures.report.html.render import render
from lightning_failures.report.run_folder import HTML_FILE, open_run
from lightning_failures.report.studies import STUDIES_FOLDER
from lightning_failures.studies import TASKS, annotate, mixed, questionnaire_questions, score_answers

RUN = Path(__file__).parents[1] / "compatibility" / "run"


@pytest.fixture
def run(tmp_path):
    """A copy of a run, in whose folder studies are kept."""
    return str(shutil.copytree(RUN, tmp_path / "run"))


def test_make_and_score__a_questionnaire(tmp_path, run, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["study", "make", run, "--task", "questionnaire"]) == 0
    assert "9 questions (0 of them controls): study-questionnaire.html" in capsys.readouterr().out
    assert "<script" in (tmp_path / "study-questionnaire.html").read_text()
    answers = annotate(mixed("questionnaire", questionnaire_questions()), np.eye(2))
    (tmp_path / "answers.json").write_text(json.dumps(answers.to_dict()))
    assert main(["study", "score", "answers.json", "--json", "scores.json"]) == 0
    assert "statement-1 (1): agree 3.0" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text())["task"] == "questionnaire"


def test_make_and_score__kept_with_the_run_and_on_its_page(tmp_path, run, capsys):
    """The record on disk, read back, is what the page shows; its numbers are those of the scores."""
    page = tmp_path / "study.html"
    assert main(["study", "make", run, "--task", "questionnaire", "--output", str(page)]) == 0
    (before,) = open_run(run).studies
    assert (before.task, before.questions, before.scores) == ("questionnaire", 9, None)
    folder = open_run(run).folder / STUDIES_FOLDER
    assert (folder / before.page).read_bytes() == page.read_bytes()
    assert "No answers are scored yet" in render(open_run(run), charts=False)
    answers = annotate(mixed("questionnaire", questionnaire_questions()), np.eye(2))
    (tmp_path / "answers.json").write_text(json.dumps(answers.to_dict()))
    (open_run(run).folder / HTML_FILE).touch()  # a run with a page, which is written again
    assert main(["study", "score", str(tmp_path / "answers.json"), "--run", run]) == 0
    assert "The page of the run shows the study" in capsys.readouterr().out
    (after,) = open_run(run).studies
    assert after == replace(before, scores=score_answers([answers]))
    text = (open_run(run).folder / HTML_FILE).read_text()
    assert f'href="studies/{before.page}"' in text
    assert re.search(r'data-of="studies/0/scores/fields/\d/means/agree">3.0<', text)


def test_score__a_run_without_the_study(tmp_path, run, capsys):
    answers = annotate(mixed("questionnaire", questionnaire_questions()), np.eye(2))
    (tmp_path / "answers.json").write_text(json.dumps(answers.to_dict()))
    assert main(["study", "score", str(tmp_path / "answers.json"), "--run", run]) == 1
    assert "holds no record of the study that was answered" in capsys.readouterr().err


@pytest.mark.parametrize("change", [{"page": "../../x.html"}, {"page": "javascript:x"}, {"questions": "many"}])
def test_studies__hostile_records_are_left_out(run, change):
    assert main(["study", "make", run, "--task", "questionnaire", "--output", f"{run}/x.html"]) == 0
    (path,) = (open_run(run).folder / STUDIES_FOLDER).glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    opened = open_run(run)
    assert opened.studies == ()
    assert any(path.name in note for note in opened.notes)


def test_make__describe_from_a_stored_run(tmp_path, run, capsys):
    page = tmp_path / "describe.html"
    status = main(["study", "make", run, "--task", "describe", "--controls", "1", "--output", str(page)])
    shown = capsys.readouterr()
    assert (status, page.is_file()) in ((0, True), (1, False))
    assert status == 0 or "holds no pictures of features" in shown.err


def test_errors__are_one_line(tmp_path, capsys):
    (tmp_path / "x.json").write_text("{}")
    for arguments, status in (
        (["study", "make", str(RUN), "--task", "simulate"], 1),
        (["study", "score", str(tmp_path / "x.json")], 1),
        (["study", "score", str(tmp_path / "nowhere.json")], 1),
    ):
        assert main(arguments) == status
        assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(SystemExit) as stop:
        main(["study", "make", str(RUN), "--task", "guess"])
    assert stop.value.code == 2


def test_tasks__are_those_of_the_room():
    assert STUDY_TASKS == TASKS
