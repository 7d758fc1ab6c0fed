"""Interventions: what acts on the next epoch, and the sampler and dataset that carry it out."""

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
