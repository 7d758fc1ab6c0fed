"""The machine annotator takes each task; it simulates a sparse layer better than a dense one."""

from __future__ import annotations

import numpy as np

from lightning_failures.studies import annotate, score_answers
from lightning_failures.studies.records import Panel
from lightning_failures.studies.sampling import matchings, simulations
from lightning_failures.studies.tasks import (
    describe_questions,
    match_questions,
    mixed,
    questionnaire_questions,
    simulate_questions,
)
from tests.studies.planted import image_of, planted


def test_simulate__better_with_the_sparse_layer():
    data = planted()
    questions = [
        question
        for name, layer in (("sparse", data.sparse), ("dense", data.dense))
        for question in simulate_questions(simulations(*layer, data.features, count=60), name, image_of)
    ]
    scores = score_answers([annotate(mixed("simulate", questions, controls=4), data.embeddings)])
    sparse, dense = scores.rates
    assert (sparse.name, dense.name) == ("sparse", "dense")
    (difference,) = scores.differences
    assert difference.interval[0] > 0
    assert sparse.interval[0] > scores.chance
    assert not scores.people[0].left_out


def test_match__sees_the_patterns_that_are_there():
    """The problematic feature is one that the image has; a random one it has only by chance."""
    data = planted()
    standard = (data.features - data.features.mean(0)) / data.features.std(0)
    errors = np.arange(120)
    worst = np.array([standard[row].argsort()[-2] for row in errors])
    found = matchings(data.sparse[0], data.features, data.labels, errors, worst, count=60)
    scores = score_answers([annotate(mixed("match", match_questions(found, image_of)), data.embeddings)])
    rates = {rate.name: rate for rate in scores.rates}
    assert set(rates) == {"problematic", "true class", "random"}
    assert rates["problematic"].interval[0] > rates["random"].interval[1]
    assert {(one.first, one.second) for one in scores.differences} == {
        ("problematic", "random"),
        ("problematic", "true class"),
    }


def test_describe__the_nearest_word():
    data = planted()
    rows = tuple(int(row) for row in np.argsort(-data.features[:, 0])[:5])
    study = mixed("describe", describe_questions([("cat", "feature 0", (Panel("images", (), rows),))]), controls=1)
    vectors = np.stack([data.embeddings[list(rows)].mean(0), -data.embeddings[list(rows)].mean(0)])
    answers = annotate(study, data.embeddings, words=["stripes", "dots"], word_embeddings=vectors)
    assert [answer.fields["words"] for answer in answers.answers] == ["stripes", "stripes"]
    (entry,) = score_answers([answers]).fields
    assert entry.words == {"stripes": 1}
    assert entry.means == {"easy": 3.0, "sure": 3.0}
    assert entry.votes["part"] == {"cannot say": 1}


def test_questionnaire__the_middle_of_each_scale():
    study = mixed("questionnaire", questionnaire_questions())
    scores = score_answers([annotate(study, np.eye(3))])
    assert {entry.means.get("agree") for entry in scores.fields if entry.condition == "statement"} == {3.0}
