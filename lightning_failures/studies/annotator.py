"""A machine that answers by the similarity of embeddings: a floor to compare people with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lightning_failures.core.arrays import unit_vectors
from lightning_failures.core.types import FloatArray
from lightning_failures.studies.records import Answer, Answers, Field, Question, Study

NAME = "machine"


def annotate(study: Study, embeddings: Any, *, words: Sequence[str] = (), word_embeddings: Any = None) -> Answers:
    """Return the answers of the machine.

    * simulate: the image with the largest sum, over features, of weight x mean cosine with the images of the feature;
    * match: the patterns whose mean cosine with the image exceeds the mean over all patterns of the study;
    * describe: the word nearest to the mean of the images; scales get their middle, choices their last option;
    * questionnaire: the middle of each scale.

    Args:
        study: The study; its questions name the rows of their images.
        embeddings: (N, D) embeddings of the images, by row.
        words: Words to describe images with.
        word_embeddings: (W, D) embeddings of the words.
    """
    x = unit_vectors(np.asarray(embeddings, dtype=np.float64))
    centre = x.mean(0)
    x = unit_vectors(x - centre)  # what all images share says nothing
    reference = _mean_match(study, x)
    vectors = None if word_embeddings is None else unit_vectors(np.asarray(word_embeddings, dtype=np.float64))
    answers = [_answer(question, x, reference, words, vectors) for question in study.questions]
    return Answers(study.task, study.id, NAME, tuple(answers))


def _answer(
    question: Question, x: FloatArray, reference: float, words: Sequence[str], vectors: FloatArray | None
) -> Answer:
    chosen: tuple[int, ...] = ()
    if question.several:
        chosen = tuple(k for k, value in enumerate(_match(question, x)) if value > reference)
    elif question.choices:
        chosen = (_simulated(question, x),)
    fields = {field.name: _filled(field, question, x, words, vectors) for field in question.fields}
    return Answer(
        question.id,
        question.condition,
        chosen,
        tuple(choice.kind for choice in question.choices),
        question.truth,
        question.control,
        fields,
    )


def _simulated(question: Question, x: FloatArray) -> int:
    scores = []
    for choice in question.choices:
        of_image = x[list(choice.rows)].mean(0)
        scores.append(sum((panel.weight or 0.0) * _speaks_for(panel, x, of_image) for panel in question.panels))
    return int(np.argmax(scores))


def _speaks_for(panel: Any, x: FloatArray, of_image: FloatArray) -> float:
    """Return the mean cosine of an image with those of a panel.

    A panel of a negative weight shows images in which the feature is weak, so that similarity speaks for the class.
    """
    cosine = float((x[list(panel.rows)] @ of_image).mean())
    return cosine if (panel.weight or 0.0) >= 0 else -cosine


def _match(question: Question, x: FloatArray) -> list[float]:
    image = x[list(question.panels[0].rows)].mean(0)
    return [float((x[list(choice.rows)] @ image).mean()) for choice in question.choices]


def _mean_match(study: Study, x: FloatArray) -> float:
    """Return the mean similarity over all patterns of a study; 0 without any."""
    values = [value for question in study.questions if question.several for value in _match(question, x)]
    return float(np.mean(values)) if values else 0.0


def _filled(field: Field, question: Question, x: FloatArray, words: Sequence[str], vectors: FloatArray | None) -> Any:
    if field.kind == "scale":
        return 3
    if field.kind == "choice":
        return field.options[-1]
    rows = [row for panel in question.panels for row in panel.rows]
    if vectors is None or not rows or not words:
        return ""
    return words[int((vectors @ x[rows].mean(0)).argmax())]
