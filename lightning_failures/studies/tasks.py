"""Questions from what was sampled and the pictures of it: simulate, match, describe, questionnaire.

Source: Wong et al. (ICML 2021), section 5 (simulate, match); Singla et al. (CVPR 2021), sections 5 and 6 (describe,
questionnaire). The statements of the questionnaire are ours, on the same subjects.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from lightning_failures.studies.records import Choice, Field, Panel, Question, Study
from lightning_failures.studies.sampling import MATCH_KINDS, Matching, Simulation

ImageOf = Callable[[int], str]
"""Returns the data URI of the image in a row."""

INSTRUCTIONS = {
    "simulate": (
        "A classifier decides by a few features. Each panel shows images in which one feature of a class is strong, and"
        " how much the feature counts for the class (for a negative weight: images in which it is weak).",
        "Which of the three images does the classifier give this class most likely?",
    ),
    "match": (
        "A classifier was wrong about the image at the top. Each choice below is a pattern, shown by images that have"
        " it in common.",
        "Choose every pattern that you can see in the image at the top; none, one or several.",
    ),
    "describe": (
        "All images of a question activate one feature of a network. In heat maps, red is where it is active.",
        "Say what the images share, and whether that belongs to the object or to its surroundings.",
    ),
    "questionnaire": ("These questions are about the failure report that you worked with.",),
}

TITLES = {
    "simulate": "Which image does the classifier mean?",
    "match": "Which patterns does the image show?",
    "describe": "What do these images share?",
    "questionnaire": "Working with the failure report",
}

STATEMENTS = (
    "The report showed failures of the model that I did not know of.",
    "I could tell from the report why the model fails on a group of images.",
    "The pictures and heat maps made the groups of failures understandable.",
    "I trust the numbers of the report.",
    "I know what I would change in the data or the training because of the report.",
    "I would use such a report for my next model.",
)
"""Statements of the questionnaire, on a scale from 1 (disagree) to 5 (agree)."""

OPEN_QUESTIONS = (
    "Which failure that you found matters most, and why?",
    "What in the report was misleading or missing?",
    "What would you do next with this model?",
)
"""Open questions of the questionnaire."""


def simulate_questions(found: Sequence[Simulation], condition: str, image_of: ImageOf) -> list[Question]:
    """Return a question for each simulation of one layer.

    Args:
        found: What was sampled.
        condition: Name of the layer, such as "sparse" or "dense".
        image_of: Returns the data URI of a row.
    """
    questions = []
    for k, one in enumerate(found):
        panels = tuple(
            Panel(f"Feature {chr(65 + j)}, weight {weight:+.2f}", *_pictures(rows, image_of), float(weight))
            for j, (rows, weight) in enumerate(zip(one.shown.tolist(), one.weights.tolist(), strict=True))
        )
        choices = tuple(Choice("", *_shown([row], image_of)) for row in one.options.tolist())
        prompt = "Which image does the classifier give this class?"
        questions.append(Question(f"{condition}-{k}", condition, prompt, panels, choices, truth=(one.right,)))
    return questions


def match_questions(found: Sequence[Matching], image_of: ImageOf, *, seed: int = 0) -> list[Question]:
    """Return a question for each error, its patterns in random order."""
    rng = np.random.default_rng(seed)
    questions = []
    for k, one in enumerate(found):
        order = rng.permutation(len(MATCH_KINDS)).tolist()
        choices = tuple(
            Choice(f"Pattern {chr(65 + j)}", *_shown(one.shown[place].tolist(), image_of, MATCH_KINDS[place]))
            for j, place in enumerate(order)
        )
        panel = Panel("The image", *_pictures([one.row], image_of))
        prompt = "Which patterns do you see in the image at the top?"
        questions.append(Question(f"match-{k}", "match", prompt, (panel,), choices, several=True))
    return questions


def describe_questions(features: Sequence[tuple[str, str, Sequence[Panel]]]) -> list[Question]:
    """Return a question for each feature.

    Args:
        features: (class, feature, panels) of each: the most active images, then heat maps and attacks if there are any.
    """
    questions = []
    for class_name, feature, panels in features:
        sections = tuple(panel.title for panel in panels)
        fields = [
            Field("words", "What do the images share? A few words."),
            Field("easy", "How easy was that to say?", "scale", ("very hard", "very easy")),
            Field("sure", "How sure are you?", "scale", ("guessing", "certain")),
            Field(
                "part",
                f"For the class “{class_name}”, is it part of the object or of its surroundings?",
                "choice",
                ("object", "surroundings", "cannot say"),
            ),
        ]
        if len(sections) > 1:
            fields.insert(3, Field("helped", "Which pictures helped most?", "choice", (*sections, "none")))
        questions.append(
            Question(
                f"{class_name}/{feature}", class_name, "What do the images share?", tuple(panels), fields=tuple(fields)
            )
        )
    return questions


def questionnaire_questions() -> list[Question]:
    """Return six statements to agree with and three open questions."""
    scale = ("disagree", "agree")
    stated = [
        Question(f"statement-{k}", "statement", text, fields=(Field("agree", "Do you agree?", "scale", scale),))
        for k, text in enumerate(STATEMENTS, 1)
    ]
    asked = [
        Question(f"open-{k}", "open", text, fields=(Field("words", "Your answer", optional=True),))
        for k, text in enumerate(OPEN_QUESTIONS, 1)
    ]
    return stated + asked


def control_questions(questions: Sequence[Question], count: int, *, seed: int = 0) -> list[Question]:
    """Return questions whose answer is evident, made of others: an image that is already shown is among the choices.

    Of a simulation, the right image is one of those that show the feature of the largest weight. Of a matching, the
    image at the top is one of those that show the pattern. A description is asked for a second time.
    """
    rng = np.random.default_rng(seed)
    chosen = [questions[k] for k in rng.permutation(len(questions))[:count].tolist()]
    controls = []
    for k, question in enumerate(chosen):
        if question.several:
            choice = question.choices[0]
            panel = replace(question.panels[0], images=choice.images[:1], rows=choice.rows[:1])
            changed = replace(question, panels=(panel,), choices=(replace(choice, kind="control"),), truth=(0,))
        elif question.choices and question.truth is not None:
            strongest = max(question.panels, key=lambda panel: panel.weight or 0.0)
            right = replace(question.choices[question.truth[0]], images=strongest.images[:1], rows=strongest.rows[:1])
            choices = [right if j == question.truth[0] else one for j, one in enumerate(question.choices)]
            changed = replace(question, panels=(strongest,), choices=tuple(choices))
        else:
            changed = question
        controls.append(replace(changed, id=f"control-{k}/{question.id}", control=True))
    return controls


def mixed(task: str, questions: Sequence[Question], *, controls: int = 0, seed: int = 0) -> Study:
    """Return a study: the questions and some controls in random order; a questionnaire keeps its order.

    Args:
        task: Its task.
        questions: All questions.
        controls: Number of questions whose answer is evident.
        seed: Seed of the order and of the controls.

    >>> study = mixed("questionnaire", questionnaire_questions())
    >>> len(study.questions), study.questions[0].id
    (9, 'statement-1')
    """
    asked = list(questions)
    if task != "questionnaire":
        asked += control_questions(questions, controls, seed=seed)
        asked = [asked[k] for k in np.random.default_rng(seed).permutation(len(asked)).tolist()]
    text = json.dumps([question.to_dict() for question in asked], sort_keys=True)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
    return Study(task, TITLES[task], INSTRUCTIONS[task], tuple(asked), seed, digest)


def _pictures(rows: Sequence[int], image_of: ImageOf) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return tuple(image_of(row) for row in rows), tuple(rows)


def _shown(rows: Sequence[int], image_of: ImageOf, kind: str = "") -> tuple[tuple[str, ...], str, tuple[int, ...]]:
    images, shown = _pictures(rows, image_of)
    return images, kind, shown
