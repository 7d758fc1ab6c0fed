"""The scores of a study with people, and what a run remembers of a study that was made of it."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_failures.data.records import Readable


@dataclass(frozen=True)
class PersonScore(Readable):
    """One person: number of answers, of controls and of right controls, and whether the person is left out."""

    annotator: str
    answers: int
    controls: int = 0
    controls_right: int = 0
    left_out: bool = False


@dataclass(frozen=True)
class RateScore(Readable):
    """A rate of answers: right ones of a condition, or images in which a kind of pattern was seen."""

    name: str
    answers: int
    count: int
    rate: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class DifferenceScore(Readable):
    """Difference of two rates with its 95 % interval."""

    first: str
    second: str
    difference: float
    interval: tuple[float, float]


@dataclass(frozen=True)
class FieldScore(Readable):
    """What was filled in about one question.

    Attributes:
        question: Its id.
        condition: The class of a description; "statement" or "open" of a questionnaire.
        answers: Number of answers.
        means: Mean of each scale.
        votes: Number of votes for each option of each choice; for scales, for each of 1 to 5.
        words: The most frequent words of texts, with their numbers of people.
        overlap: Mean overlap (Jaccard index) of the words of two people; None with fewer than two texts.
        similarity: Mean cosine of the texts of two people; None without a text encoder.
        texts: The texts.
    """

    question: str
    condition: str
    answers: int
    means: dict[str, float]
    votes: dict[str, dict[str, int]]
    words: dict[str, int]
    overlap: float | None = None
    similarity: float | None = None
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class PairWords(Readable):
    """Words in which two classes were described, with their numbers of descriptions, the most frequent first.

    Attributes:
        first: A class.
        second: Another class.
        only_first: Words of the first class alone.
        both: Words of both, with the smaller number.
        only_second: Words of the second class alone.
    """

    first: str
    second: str
    only_first: dict[str, int]
    both: dict[str, int]
    only_second: dict[str, int]


@dataclass(frozen=True)
class Scores(Readable):
    """The scores of a study.

    Attributes:
        task: Its task.
        people: Who answered.
        rates: Rates by condition or by kind of pattern.
        differences: Differences of the rates to the first one.
        agreement: Share of pairs of people who chose the same; None without two answers to a question.
        fields: What was filled in, by question.
        chance: Rate of someone who guesses; None if it is not defined.
        pairs: Words of pairs of described classes, those first that share most; at most 24.
    """

    task: str
    people: tuple[PersonScore, ...]
    rates: tuple[RateScore, ...] = ()
    differences: tuple[DifferenceScore, ...] = ()
    agreement: float | None = None
    fields: tuple[FieldScore, ...] = ()
    chance: float | None = None
    pairs: tuple[PairWords, ...] = ()


@dataclass(frozen=True)
class StudyReport(Readable):
    """A study that was made of a run.

    Attributes:
        task: Its task.
        id: Id of the study, by which answers are joined.
        title: Title of its page.
        questions: Number of questions, controls included.
        controls: Number of controls.
        page: File name of its page, beside this record.
        scores: The scores of the answers, or None before there are any.
    """

    task: str
    id: str
    title: str
    questions: int
    controls: int
    page: str
    scores: Scores | None = None
