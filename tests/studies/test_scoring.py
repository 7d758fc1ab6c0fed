"""Scores computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_failures.errors import DataError
from lightning_failures.studies.records import Answer, Answers
from lightning_failures.studies.scoring import score_answers, score_lines


def person(name: str, sparse: int, dense: int, controls: int = 2, n: int = 20, study: str = "s") -> Answers:
    """Right answers to so many of n questions of each condition, and to so many of two controls."""
    answers = [
        Answer(f"{condition}-{k}", condition, (int(k >= right),), ("", "", ""), (0,))
        for condition, right in (("sparse", sparse), ("dense", dense))
        for k in range(n)
    ]
    answers += [Answer(f"c{k}", "sparse", (int(k >= controls),), ("", ""), (0,), control=True) for k in range(2)]
    return Answers("simulate", study, name, tuple(answers))


def test_simulate__rates_difference_and_chance():
    scores = score_answers([person("a", 18, 8), person("b", 16, 6)])
    sparse, dense = scores.rates
    assert (sparse.answers, sparse.count, sparse.rate) == (40, 34, 0.85)
    assert (dense.count, dense.rate) == (14, 0.35)
    (difference,) = scores.differences
    assert difference.difference == pytest.approx(0.5)
    assert 0.2 < difference.interval[0] < 0.5 < difference.interval[1] < 0.8
    assert scores.agreement == pytest.approx((18 + 18) / 40)  # they differ in two questions of each
    lines = score_lines(scores)
    assert lines[0] == "simulate: 2 people, 80 answers."
    assert any("chance" in line and "33.3 %" in line for line in lines)


def test_intervals__are_wider_where_people_repeat_each_other():
    one = score_answers([person("a", 10, 10)]).rates[0]
    copies = score_answers([person(str(k), 10, 10) for k in range(4)]).rates[0]
    independent = 80
    assert copies.answers == independent
    width = copies.interval[1] - copies.interval[0]
    assert width == pytest.approx(one.interval[1] - one.interval[0], rel=0.15)  # four times the same says no more


def test_controls__who_misses_them_is_left_out():
    scores = score_answers([person("a", 18, 8), person("careless", 1, 1, controls=0)])
    assert [one.left_out for one in scores.people] == [False, True]
    assert scores.rates[0].answers == 20
    assert any("careless" in line for line in score_lines(scores))


def test_describe__overlap_similarity_votes():
    def described(name: str, words: str, part: str, sure: int) -> Answers:
        fields = {"words": words, "sure": sure, "part": part}
        return Answers("describe", "s", name, (Answer("cat/feature 3", "cat", fields=fields),))

    answers = [
        described("a", "green grass", "surroundings", 5),
        described("b", "The grass", "surroundings", 3),
        described("c", "", "object", 1),
    ]

    def encode(texts):
        return np.stack([np.array([1.0, 0.0]) if "green" in text else np.array([0.6, 0.8]) for text in texts])

    (entry,) = score_answers(answers, encode_texts=encode).fields
    assert entry.overlap == 0.5
    assert entry.similarity == pytest.approx(0.6)
    assert entry.words == {"grass": 2, "green": 1}
    assert entry.votes["part"] == {"surroundings": 2, "object": 1}
    assert entry.means == {"sure": 3.0}
    assert entry.votes["sure"] == {"5": 1, "3": 1, "1": 1}
    assert entry.texts == ("green grass", "The grass")


def test_answers__of_several_studies_are_not_mixed():
    with pytest.raises(DataError, match="of 2 studies"):
        score_answers([person("a", 1, 1), person("b", 1, 1, study="t")])
    with pytest.raises(DataError, match="no answers"):
        score_answers([])


def test_describe__words_of_pairs_of_classes():
    def described(name: str, class_name: str, words: str) -> Answers:
        answer = Answer(f"{class_name}/feature 3", class_name, fields={"words": words})
        return Answers("describe", "s", name, (answer,))

    answers = [
        described("a", "cat", "green grass"),
        described("b", "cat", "the grass"),
        described("a", "dog", "grass, a ball"),
        described("a", "fox", ""),
    ]
    scores = score_answers(answers)
    (pair,) = scores.pairs  # nobody described the fox
    assert (pair.first, pair.second) == ("cat", "dog")
    assert (pair.only_first, pair.both, pair.only_second) == ({"green": 1}, {"grass": 1}, {"ball": 1})
    assert "  cat and dog share grass 1; cat: green 1; dog: ball 1" in score_lines(scores)
