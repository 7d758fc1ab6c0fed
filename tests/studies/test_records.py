"""Answers on disk."""

from __future__ import annotations

import json

import pytest

from lightning_failures.errors import DataError
from lightning_failures.studies.records import Answer, Answers


def test_answers__round_trip(tmp_path):
    answers = Answers("match", "s", "Ü", (Answer("q", "match", (1,), ("a", "b"), None, False, {"words": "x"}, 1.5),))
    (tmp_path / "a.json").write_text(json.dumps(answers.to_dict()))
    assert Answers.load(tmp_path / "a.json") == answers
    assert answers.answers[0].right is None


@pytest.mark.parametrize("content", ["{", "[]", '{"task": 3}', '{"task":"a","study":"b","annotator":"c","answers":3}'])
def test_answers__damaged_files_are_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match="holds no answers to a study"):
        Answers.load(tmp_path / "a.json")


def test_answers__of_a_later_version(tmp_path):
    content = Answers("match", "s", "a", (), schema=2).to_dict()
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="has schema 2"):
        Answers.load(tmp_path / "a.json")
