"""Studies with people: do the findings of a run mean something to them? Tasks, one page to answer them, and scores.

The papers rest on such studies, which were run on a crowdsourcing market. Here a study is one HTML file that works
offline, and its answers are JSON files; a machine annotator gives a floor to compare people with.

Files, each importing only from those above it::

    records     A study, its questions and the answers to it, with the keys of their JSON forms
    sampling    What to ask: classes, features and images of each question, as indices
    sparse_run  What to ask about the sparse layer of a run, from its report and pictures alone
    tasks       Questions from what was sampled and the pictures of it: simulate, match, describe, questionnaire
    scoring     Tables from answers: rates with intervals, controls, agreement, votes, words
    annotator   A machine that answers by the similarity of embeddings
    page        A study as one HTML file
    folder      A study from the files of a run
"""

from __future__ import annotations

from lightning_failures.studies.annotator import annotate
from lightning_failures.studies.folder import TASKS, make_study
from lightning_failures.studies.page import study_page
from lightning_failures.studies.records import Answers, Question, Study
from lightning_failures.studies.scoring import score_answers
from lightning_failures.studies.tasks import (
    describe_questions,
    match_questions,
    mixed,
    questionnaire_questions,
    simulate_questions,
)

__all__ = [
    "TASKS",
    "Answers",
    "Question",
    "Study",
    "annotate",
    "describe_questions",
    "make_study",
    "match_questions",
    "mixed",
    "questionnaire_questions",
    "score_answers",
    "simulate_questions",
    "study_page",
]
