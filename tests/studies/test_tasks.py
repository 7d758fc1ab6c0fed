"""Questions and controls."""

from __future__ import annotations

import numpy as np

from lightning_failures.studies.records import Panel
from lightning_failures.studies.sampling import MATCH_KINDS, matchings, simulations
from lightning_failures.studies.tasks import (
    OPEN_QUESTIONS,
    STATEMENTS,
    control_questions,
    describe_questions,
    match_questions,
    mixed,
    questionnaire_questions,
    simulate_questions,
)
from tests.studies.planted import image_of, planted


def simulated(count: int = 6):
    data = planted()
    return simulate_questions(simulations(*data.sparse, data.features, count=count), "sparse", image_of)


def matched(count: int = 6):
    data = planted()
    errors = np.arange(40)
    return match_questions(matchings(data.sparse[0], data.features, data.labels, errors, errors, count=count), image_of)


def test_simulate__names_no_class():
    for question in simulated():
        assert len(question.panels) == 5
        assert [len(choice.images) for choice in question.choices] == [1, 1, 1]
        assert question.panels[0].title.startswith("Feature A, weight +")
        assert len(question.truth) == 1


def test_match__kinds_are_in_random_order():
    questions = matched(12)
    assert all({choice.kind for choice in question.choices} == set(MATCH_KINDS) for question in questions)
    assert len({tuple(choice.kind for choice in question.choices) for question in questions}) > 1
    assert all(kind not in choice.text for kind in MATCH_KINDS for q in questions for choice in q.choices)


def test_controls__show_the_answer():
    (simulation,) = control_questions(simulated(1), 1)
    assert simulation.control
    assert simulation.choices[simulation.truth[0]].rows[0] in simulation.panels[0].rows
    (match,) = control_questions(matched(1), 1)
    assert match.panels[0].rows[0] in match.choices[0].rows
    assert match.truth == (0,)


def test_describe__asks_for_each_class():
    panels = (Panel("images", (image_of(0),)), Panel("heat maps", (image_of(1),)))
    first, second = describe_questions([("cat", "feature 3", panels), ("dog", "feature 3", panels[:1])])
    assert [field.name for field in first.fields] == ["words", "easy", "sure", "helped", "part"]
    assert [field.name for field in second.fields] == ["words", "easy", "sure", "part"]
    assert "cat" in first.fields[-1].label


def test_mixed__the_order_follows_the_seed():
    questions = simulated()
    first, again, other = (mixed("simulate", questions, controls=2, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [one.id for one in first.questions] != [one.id for one in other.questions]
    assert sum(one.control for one in first.questions) == 2
    assert len({one.id for one in first.questions}) == 8
    assert first.id != other.id


def test_questionnaire__six_statements_and_three_open_questions():
    questions = mixed("questionnaire", questionnaire_questions(), controls=5, seed=3).questions
    assert [one.prompt for one in questions] == [*STATEMENTS, *OPEN_QUESTIONS]
    assert (len(STATEMENTS), len(OPEN_QUESTIONS)) == (6, 3)
