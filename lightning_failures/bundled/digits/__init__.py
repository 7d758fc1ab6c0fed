"""Coloured digits: real handwritten digits with a planted shortcut, and a small classifier that falls for it.

Files, each importing only from those above it::

    model     A small classifier of coloured digits, written as anybody would write it. It knows nothing of failure
    render    Real handwritten digits in colour: which source digit goes where, and how one becomes a 32 x 32 RGB
    captions  The words for coloured digits: what the candidate captions may name, and what the digits-CLIP was
    shortcut  The planted shortcut: which digit wears which tint, and how often
    data      Coloured digits with a planted shortcut, as a data set and as a data module
"""

from lightning_failures.bundled.digits.captions import ADJECTIVES, NOUNS, PREPOSITIONS
from lightning_failures.bundled.digits.data import ColouredDigits, ColouredDigitsDataModule
from lightning_failures.bundled.digits.model import DigitClassifier
from lightning_failures.bundled.digits.render import CLASSES, TINTS

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
