"""Interventions: what acts on the next epoch, and the sampler and dataset that carry it out.

Files, each importing only from those above it::

    appended          The one dataset that carries out additions: the user's training set, and further sources of
    label_errors      Suspected label errors among the examples that an intervention is about to weigh up or to add
    selection         Which examples of a pool are worth adding
    synthesis         Images generated from the captions of failures
    validation_split  Parts of a validation set: what finds the failures that are acted on, what tells whether it
    verdicts          Whether an intervention helped: from outcomes with it and without it to one word, an interval
    base              What an intervention is: a plain value that says when it acts, and turns judged training
    sampler           The one sampler that carries out weights: it stands in for the user's own, and draws the same
    filtered          AddFiltered: the hardest examples of a labelled pool join the training set
    synthetic         AddSynthetic: images generated from a failure mode, from its caption or from its direction,
    upweight          Upweight: training examples that the directions flag count more
"""

from lightning_failures.interventions.base import Decision, Discovery, Intervention, JudgedExamples, Round
from lightning_failures.interventions.filtered import AddFiltered
from lightning_failures.interventions.synthetic import AddSynthetic
from lightning_failures.interventions.upweight import Upweight

__all__ = [
    "AddFiltered",
    "AddSynthetic",
    "Decision",
    "Discovery",
    "Intervention",
    "JudgedExamples",
    "Round",
    "Upweight",
]
