"""Interventions: what acts on the next epoch, and the sampler that carries it out."""

from lightning_failures.interventions.base import Decision, Intervention, JudgedExamples
from lightning_failures.interventions.upweight import Upweight

__all__ = ["Decision", "Intervention", "JudgedExamples", "Upweight"]
