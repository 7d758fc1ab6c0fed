"""A study, its questions and the answers to it, with the keys of their JSON forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_failures.core.serialization import from_jsonable, read_json
from lightning_failures.data.records import Readable
from lightning_failures.errors import DataError

MAX_ANSWER_BYTES = 1 << 24
"""Limit of a file of answers."""


@dataclass(frozen=True)
class Panel(Readable):
    """Images that a question shows together.

    Attributes:
        title: Text above them.
        images: Data URIs.
        rows: Rows of the images in the data of the study, for the machine annotator; empty if there are none.
        weight: Weight of the feature that the images show, or None.
    """

    title: str
    images: tuple[str, ...] = ()
    rows: tuple[int, ...] = ()
    weight: float | None = None


@dataclass(frozen=True)
class Choice(Readable):
    """One thing to choose.

    Attributes:
        text: Text of the choice.
        images: Data URIs; several for a pattern.
        kind: What the choice is, such as "problematic" or "random"; people do not see it.
        rows: As in :class:`Panel`.
    """

    text: str = ""
    images: tuple[str, ...] = ()
    kind: str = ""
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class Field(Readable):
    """One thing to fill in.

    Attributes:
        name: Key of the answer.
        label: Text above it.
        kind: "text", "scale" (1 to 5) or "choice".
        options: Texts of a choice; the two ends of a scale.
        optional: Whether it may stay empty.
    """

    name: str
    label: str
    kind: str = "text"
    options: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True)
class Question(Readable):
    """One question.

    Attributes:
        id: Its id, unique in the study.
        condition: What is compared, such as "sparse" or "dense"; a class for descriptions.
        prompt: The text of the question.
        panels: Images to look at.
        choices: Things to choose from; empty if there are only fields.
        several: Whether any number of choices may be made.
        fields: Things to fill in.
        truth: Indices of the right choices, or None.
        control: Whether the answer is evident, so that it tells who does not look.
    """

    id: str
    condition: str
    prompt: str
    panels: tuple[Panel, ...] = ()
    choices: tuple[Choice, ...] = ()
    several: bool = False
    fields: tuple[Field, ...] = ()
    truth: tuple[int, ...] | None = None
    control: bool = False


@dataclass(frozen=True)
class Study(Readable):
    """A study: questions in the order in which they are asked.

    Attributes:
        task: "simulate", "match", "describe" or "questionnaire".
        title: Title of the page.
        instructions: What to do, one paragraph each.
        questions: The questions.
        seed: Seed of everything that was drawn.
        id: Digest of the questions, by which answers are joined.
    """

    task: str
    title: str
    instructions: tuple[str, ...]
    questions: tuple[Question, ...]
    seed: int = 0
    id: str = ""


@dataclass(frozen=True)
class Answer(Readable):
    """The answer to one question, with what scoring needs of the question.

    Attributes:
        question: Id of the question.
        condition: As in :class:`Question`.
        chosen: Indices of the choices that were made.
        kinds: Kinds of all choices.
        truth: As in :class:`Question`.
        control: As in :class:`Question`.
        fields: What was filled in.
        seconds: How long it took; None if it is not known.
    """

    question: str
    condition: str
    chosen: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    truth: tuple[int, ...] | None = None
    control: bool = False
    fields: dict[str, Any] | None = None
    seconds: float | None = None

    @property
    def right(self) -> bool | None:
        """Whether the choices are the right ones; None for a question without a right answer."""
        return None if self.truth is None else set(self.chosen) == set(self.truth)


@dataclass(frozen=True)
class Answers(Readable):
    """The answers of one person, or of the machine annotator.

    Attributes:
        task: Task of the study.
        study: Id of the study.
        annotator: Who answered.
        answers: The answers.
        schema: Version of the format.
    """

    task: str
    study: str
    annotator: str
    answers: tuple[Answer, ...]
    schema: int = 1

    @classmethod
    def load(cls, path: str | Path) -> Answers:
        """Read the file that a study page downloads.

        Raises:
            DataError: The file does not hold answers, or is too large.
            OSError: The file cannot be read.
        """
        path = Path(path)
        if path.stat().st_size > MAX_ANSWER_BYTES:
            raise DataError(f"{path} is too large for the answers to a study")
        try:
            found: Answers = from_jsonable(cls, read_json(path.read_bytes()))
        except Exception as error:  # the file may come from anywhere
            raise DataError(
                f"{path} holds no answers to a study ({str(error)[:200]}). Name the JSON file that its page downloads."
            ) from error
        if found.schema != 1:
            raise DataError(f"{path} has schema {found.schema}; this version reads 1. Upgrade lightning_failures.")
        return found
