"""Interventions: changes of the training set for the next epoch, and the sampler and dataset that carry them out.

Files, each importing only from those above it::

    appended          The training set with additional sources of examples behind it
    label_errors      Suspected label errors among the examples that an intervention is about to upweight or add
    selection         Selection of examples of a pool
    synthesis         Generation of images from failure modes, and their ledger
    validation_split  Parts of a validation set: to find failures, to report results, to make decisions by
    head              A new last layer, fitted to penultimate features with flagged and unflagged of equal mass
    wobble            A fall of accuracy against the wobble of accuracy between validations
    verdicts          Verdicts on interventions: a word, an interval and a sentence
    base              The interface of an intervention: when it acts, what it can ask for, what it decides
    head_measures     What new last layers gain on examples that they were not fitted to, and whether they do harm
    refit             What the interventions that refit the last layer have in common
    flags             Which training examples interventions act on, without doubtful labels
    sampler           The sampler that carries out weights: replaces the user's own, draws the same without weights
    filtered          AddFiltered: adds the hardest examples of a labelled pool
    synthetic         AddSynthetic: adds images generated from failure modes, by caption or by direction
    upweight          Upweight: gives training examples that the directions flag more weight
    retrain_head      RetrainHead: refits the last layer, flagged and unflagged of equal mass
    mask_features     MaskFeatures: refits the last layer without features that mislead it
"""

from lightning_failures.interventions.base import Decision, Discovery, EarlyAnswers, Intervention, JudgedExamples, Round
from lightning_failures.interventions.filtered import AddFiltered
from lightning_failures.interventions.label_errors import suspect_labels
from lightning_failures.interventions.mask_features import MaskFeatures
from lightning_failures.interventions.retrain_head import RetrainHead
from lightning_failures.interventions.synthetic import AddSynthetic
from lightning_failures.interventions.upweight import Upweight
from lightning_failures.interventions.verdicts import Verdict

__all__ = [
    "AddFiltered",
    "AddSynthetic",
    "Decision",
    "Discovery",
    "EarlyAnswers",
    "Intervention",
    "JudgedExamples",
    "MaskFeatures",
    "RetrainHead",
    "Round",
    "Upweight",
    "Verdict",
    "suspect_labels",
]
