"""Coloured digits: real handwritten digits with a planted shortcut, and a small classifier that falls for it."""

from lightning_failures.digits.captions import ADJECTIVES, NOUNS, PREPOSITIONS
from lightning_failures.digits.data import ColouredDigits, ColouredDigitsDataModule
from lightning_failures.digits.model import DigitClassifier
from lightning_failures.digits.render import CLASSES, TINTS

__all__ = [
    "ADJECTIVES",
    "CLASSES",
    "NOUNS",
    "PREPOSITIONS",
    "TINTS",
    "ColouredDigits",
    "ColouredDigitsDataModule",
    "DigitClassifier",
]
