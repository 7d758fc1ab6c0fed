"""Tables from answers: rates with intervals, controls, agreement, votes, words.

Answers are not independent: several of one person, and several to one question. Intervals count them by person, or by
question where fewer than five people answered.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from lightning_failures.core.text import clean, number, percent, percent_interval, points
from lightning_failures.data.study_scores import DifferenceScore, FieldScore, PairWords, PersonScore, RateScore, Scores
from lightning_failures.errors import DataError
from lightning_failures.stats.intervals import difference_interval, share_intervals
from lightning_failures.studies.records import Answer, Answers

FEW_PEOPLE = 5
"""With fewer people, answers to one question count as one source."""

MIN_CONTROLS = 0.5
"""People with a smaller share of right controls are left out."""

CHANCE = {"simulate": 1 / 3}
"""Share of right answers of someone who guesses."""

_COMMON = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "at",
        "in",
        "is",
        "it",
        "of",
        "on",
        "or",
        "some",
        "the",
        "there",
        "they",
        "this",
        "to",
        "with",
    ]
)
_MOST_WORDS = 12
_MOST_PAIRS = 24


def score_answers(answers: Sequence[Answers], *, encode_texts: Callable[[list[str]], Any] | None = None) -> Scores:
    """Return the scores of a study.

    Args:
        answers: The answers of each person.
        encode_texts: Returns (n, D) unit embeddings of texts, for the similarity of descriptions.

    Raises:
        DataError: There are no answers, or they are of several studies.
    """
    studies = {(one.task, one.study) for one in answers}
    if len(studies) != 1:
        raise DataError(
            f"The answers are of {len(studies)} studies; score each by itself." if studies else "There are no answers."
        )
    people = [_person(one) for one in answers]
    kept = [one for one, person in zip(answers, people, strict=True) if not person.left_out]
    flat = [(k, answer) for k, one in enumerate(kept) for answer in one.answers if not answer.control]
    task = answers[0].task
    rates = _match_rates(flat, len(kept)) if task == "match" else _condition_rates(flat, len(kept))
    fields = _field_scores(flat, encode_texts)
    return Scores(
        task,
        tuple(people),
        tuple(rates),
        tuple(_difference(rates[0], other) for other in rates[1:]),
        _agreement(answer for _, answer in flat),
        tuple(fields),
        CHANCE.get(task),
        tuple(_pair_words(fields)) if task == "describe" else (),
    )


def score_lines(scores: Scores) -> list[str]:
    """Return the scores as lines of text."""
    left = [clean(person.annotator, 40) for person in scores.people if person.left_out]
    lines = [f"{scores.task}: {len(scores.people)} people, {sum(person.answers for person in scores.people)} answers."]
    if left:
        lines.append(f"Left out, because they missed the controls: {', '.join(left)}.")
    lines += [
        f"  {rate.name:<12} {percent(rate.rate)} ({percent_interval(rate.interval)}), {rate.count} of {rate.answers}"
        for rate in scores.rates
    ]
    if scores.rates and scores.chance is not None:
        lines.append(f"  {'chance':<12} {percent(scores.chance)}")
    lines += [
        f"  {one.first} - {one.second}: {points(one.difference)} ({percent_interval(one.interval, 'points')})"
        for one in scores.differences
    ]
    if scores.agreement is not None:
        lines.append(f"  two people chose the same in {percent(scores.agreement)} of the questions")
    for entry in scores.fields:
        parts = [f"{name} {number(mean, '.1f')}" for name, mean in entry.means.items()]
        parts += [
            f"{name}: {', '.join(f'{clean(option, 30)} {count}' for option, count in votes.items())}"
            for name, votes in entry.votes.items()
            if name not in entry.means
        ]
        if entry.words:
            parts.append("words: " + ", ".join(f"{clean(word, 30)} {count}" for word, count in entry.words.items()))
        if entry.overlap is not None:
            parts.append(f"overlap {number(entry.overlap)}")
        if entry.similarity is not None:
            parts.append(f"similarity {number(entry.similarity)}")
        lines.append(f"  {clean(entry.question, 60)} ({entry.answers}): {'; '.join(parts)}")
    for pair in scores.pairs:
        first, second = clean(pair.first, 40), clean(pair.second, 40)
        parts = [f"{name}: {_counted(words)}" for name, words in ((first, pair.only_first), (second, pair.only_second))]
        lines.append(f"  {first} and {second} share {_counted(pair.both)}; {'; '.join(parts)}")
    return lines


def _counted(words: dict[str, int]) -> str:
    return ", ".join(f"{clean(word, 30)} {count}" for word, count in words.items()) or "no words"


def _pair_words(fields: Sequence[FieldScore]) -> list[PairWords]:
    """Return the words of pairs of classes, those first that share most words."""
    by_class: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for entry in fields:
        by_class[entry.condition].update(word for text in entry.texts for word in set(words_of(text)))
    pairs = []
    for first, second in combinations(sorted(name for name, words in by_class.items() if words), 2):
        one, other = by_class[first], by_class[second]
        parts = (
            Counter({word: count for word, count in one.items() if word not in other}),
            one & other,
            Counter({word: count for word, count in other.items() if word not in one}),
        )
        pairs.append(PairWords(first, second, *(dict(part.most_common(_MOST_WORDS)) for part in parts)))
    return sorted(pairs, key=lambda pair: -sum(pair.both.values()))[:_MOST_PAIRS]


def words_of(text: str) -> list[str]:
    """Return the words of a description that say something, in lower case.

    >>> words_of("The green grass, and a fence")
    ['green', 'grass', 'fence']
    """
    return [word for word in re.findall(r"[^\W\d_]+", text.lower()) if word not in _COMMON]


def _person(one: Answers) -> PersonScore:
    """Count the controls of a person. A control without a right answer is one that is asked twice."""
    controls = [answer.right for answer in one.answers if answer.control and answer.right is not None]
    asked = sum(not answer.control for answer in one.answers)
    too_few = bool(controls) and sum(controls) < MIN_CONTROLS * len(controls)
    return PersonScore(one.annotator, asked, len(controls), sum(controls), too_few)


def _condition_rates(flat: Sequence[tuple[int, Answer]], people: int) -> list[RateScore]:
    """Return the share of right answers of each condition, in order of appearance by name: sparse before dense."""
    conditions = sorted({answer.condition for _, answer in flat if answer.right is not None}, reverse=True)
    rates = []
    for condition in conditions:
        of_condition = [(k, answer) for k, answer in flat if answer.condition == condition]
        right = [(k, answer.question, bool(answer.right)) for k, answer in of_condition if answer.right is not None]
        rates.append(_rate(condition, right, people))
    return rates


def _match_rates(flat: Sequence[tuple[int, Answer]], people: int) -> list[RateScore]:
    """Return how often each kind of pattern was seen."""
    kinds = list(dict.fromkeys(kind for _, answer in flat for kind in sorted(answer.kinds)))
    rates = []
    for kind in kinds:
        seen = [
            (k, answer.question, place in answer.chosen)
            for k, answer in flat
            for place, one in enumerate(answer.kinds)
            if one == kind
        ]
        rates.append(_rate(kind, seen, people))
    return rates


def _rate(name: str, outcomes: Sequence[tuple[int, str, bool]], people: int) -> RateScore:
    """Return a rate of (person, question, outcome)."""
    values = np.array([outcome for *_, outcome in outcomes], dtype=np.int64)
    sources = [question if people < FEW_PEOPLE else person for person, question, _ in outcomes]
    codes = np.unique(np.array(sources, dtype=object).astype(str), return_inverse=True)[1]
    ends = share_intervals(values, 2, codes)[1]
    return RateScore(name, len(values), int(values.sum()), float(values.mean()), ends)


def _difference(first: RateScore, second: RateScore) -> DifferenceScore:
    ends = difference_interval(first.rate, first.interval, second.rate, second.interval)
    return DifferenceScore(first.name, second.name, first.rate - second.rate, ends)


def _agreement(answers: Iterable[Answer]) -> float | None:
    """Return the share of pairs of answers to one question that chose the same."""
    by_question: defaultdict[str, list[frozenset[int]]] = defaultdict(list)
    for answer in answers:
        if answer.kinds:
            by_question[answer.question].append(frozenset(answer.chosen))
    pairs = [one == other for chosen in by_question.values() for one, other in combinations(chosen, 2)]
    return float(np.mean(pairs)) if pairs else None


def _field_scores(
    flat: Sequence[tuple[int, Answer]], encode_texts: Callable[[list[str]], Any] | None
) -> list[FieldScore]:
    by_question: defaultdict[str, list[Answer]] = defaultdict(list)
    for _, answer in flat:
        if answer.fields:
            by_question[answer.question].append(answer)
    return [_field_score(question, answers, encode_texts) for question, answers in sorted(by_question.items())]


def _field_score(
    question: str, answers: Sequence[Answer], encode_texts: Callable[[list[str]], Any] | None
) -> FieldScore:
    given: defaultdict[str, list[Any]] = defaultdict(list)
    for answer in answers:
        for name, value in (answer.fields or {}).items():
            if value not in (None, ""):
                given[name].append(value)
    texts = [str(text) for text in given.pop("words", [])]
    scales = {name: values for name, values in given.items() if all(isinstance(one, int | float) for one in values)}
    return FieldScore(
        question,
        answers[0].condition,
        len(answers),
        {name: float(np.mean(values)) for name, values in scales.items()},
        {name: dict(Counter(map(str, values)).most_common()) for name, values in given.items()},
        dict(Counter(word for text in texts for word in sorted(set(words_of(text)))).most_common(_MOST_WORDS)),
        _overlap(texts),
        _similarity(texts, encode_texts),
        tuple(texts),
    )


def _overlap(texts: Sequence[str]) -> float | None:
    """Return the mean Jaccard index of the words of two texts."""
    sets = [frozenset(words_of(text)) for text in texts]
    pairs = [len(one & other) / len(one | other) for one, other in combinations(sets, 2) if one | other]
    return float(np.mean(pairs)) if pairs else None


def _similarity(texts: Sequence[str], encode_texts: Callable[[list[str]], Any] | None) -> float | None:
    if encode_texts is None or len(texts) < 2:
        return None
    vectors = np.asarray(encode_texts(list(texts)), dtype=np.float64)
    cosines = vectors @ vectors.T
    return float(cosines[np.triu_indices(len(texts), 1)].mean())
