"""Coloured digits: handwritten digits with a planted shortcut, and a small classifier that learns the shortcut.

Files, each importing only from those above it::

    model     A small classifier of coloured digits, without any code for failure modes
    render    Render source digits in colour as 32 x 32 RGB images, and split the source digits
    captions  The vocabulary of coloured digits, for candidate captions and for training the digits-CLIP
    shortcut  The planted shortcut: the tints of each digit and their frequency
    data      Coloured digits as a data set and as a data module
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
