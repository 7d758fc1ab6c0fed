"""Study pages in a real browser: with the keyboard alone, offline, from the first question to the file of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_failures.studies import mixed, score_answers, study_page
from lightning_failures.studies.records import Answers, Panel
from lightning_failures.studies.tasks import describe_questions, questionnaire_questions
from tests.studies.planted import image_of
from tests.studies.test_tasks import matched, simulated

pytest_plugins = ["tests.helpers.browser"]
pytestmark = pytest.mark.slow

NASTY = "</script><img src=x onerror=alert(1)>"


def opened(visit, tmp_path: Path, study):
    path = tmp_path / "study.html"
    path.write_text(study_page(study), encoding="utf-8")
    return visit(path)


def begin(page, name: str = "Ada 1") -> None:
    page.keyboard.type(name)
    page.keyboard.press("Enter")


def downloaded(page, tmp_path: Path) -> Answers:
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")  # the button has the focus
    path = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return Answers.load(path)


def test_simulate__with_the_keyboard_alone(visit, tmp_path):
    study = mixed("simulate", simulated(4), controls=1)
    seen = opened(visit, tmp_path, study)
    page = seen.page
    assert page.locator("h1").inner_text() == study.title
    page.keyboard.press("Enter")  # without a name nothing begins
    assert page.locator("#name").is_visible()
    begin(page)
    for k, question in enumerate(study.questions):
        assert page.locator(".muted").inner_text() == f"Question {k + 1} of 5"
        assert page.locator("#next").is_disabled()
        page.keyboard.press("Enter")  # not before something is chosen
        assert page.locator(".muted").inner_text() == f"Question {k + 1} of 5"
        page.keyboard.press("9")
        page.keyboard.press("2")
        page.keyboard.press(str(question.truth[0] + 1))  # the last key counts
        assert page.locator('[aria-pressed="true"]').count() == 1
        page.keyboard.press("Enter")
    answers = downloaded(page, tmp_path)
    assert (answers.annotator, answers.study, answers.task) == ("Ada 1", study.id, "simulate")
    assert [answer.question for answer in answers.answers] == [question.id for question in study.questions]
    scores = score_answers([answers])
    assert (scores.rates[0].rate, scores.rates[0].answers, scores.people[0].controls_right) == (1.0, 4, 1)
    assert all(answer.seconds is not None for answer in answers.answers)
    assert (tmp_path / "answers-simulate-Ada_1.json").is_file()
    assert seen.errors == []
    assert seen.refused == []
    assert len(seen.requested) <= 2  # the page, and the file of answers


def test_match__any_number_and_back(visit, tmp_path):
    study = mixed("match", matched(2))
    page = opened(visit, tmp_path, study).page
    begin(page)
    page.keyboard.press("1")
    page.keyboard.press("3")
    page.keyboard.press("Enter")
    page.keyboard.press("Backspace")
    assert page.locator('[aria-pressed="true"]').count() == 2  # kept
    page.keyboard.press("1")  # off again
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # none is an answer too
    answers = downloaded(page, tmp_path)
    assert [answer.chosen for answer in answers.answers] == [(2,), ()]


def test_describe__texts_scales_and_choices(visit, tmp_path):
    panels = (Panel("images", tuple(map(image_of, range(5)))), Panel("heat maps", (image_of(9),)))
    study = mixed("describe", describe_questions([(NASTY, "feature 3", panels)]))
    seen = opened(visit, tmp_path, study)
    page = seen.page
    begin(page)
    assert NASTY in page.locator("main").inner_text()
    assert page.locator("img").count() == 6
    page.keyboard.type("green grass 123")  # digits in a text choose nothing
    assert page.locator('[aria-pressed="true"]').count() == 0
    page.locator("h1").focus()
    for key in ("4", "5", "2", "1"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    (answer,) = downloaded(page, tmp_path).answers
    assert answer.fields == {"words": "green grass 123", "easy": 4, "sure": 5, "helped": "heat maps", "part": "object"}
    assert seen.errors == []


def test_questionnaire__open_questions_may_stay_empty(visit, tmp_path):
    study = mixed("questionnaire", questionnaire_questions())
    page = opened(visit, tmp_path, study).page
    begin(page)
    for value in ("1", "2", "3", "4", "5", "5"):
        page.keyboard.press(value)
        page.keyboard.press("Enter")
    page.keyboard.type("the tint")
    for _ in range(3):
        page.keyboard.press("Enter")
    answers = downloaded(page, tmp_path)
    assert [answer.fields.get("agree") for answer in answers.answers[:6]] == [1, 2, 3, 4, 5, 5]
    assert [answer.fields.get("words") for answer in answers.answers[6:]] == ["the tint", None, None]


def test_page__fits_a_phone(visit, tmp_path):
    path = tmp_path / "study.html"
    path.write_text(study_page(mixed("simulate", simulated(1))), encoding="utf-8")
    page = visit(path, width=390, height=800, dark=True).page
    begin(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
