"""Data and models in the package: coloured digits and small pretrained models.

Files, each importing only from those above it::

    digits  Handwritten digits with a planted shortcut, and a small classifier that learns it
    models  Small encoders of coloured digits, for machines without a network
"""

from lightning_failures.bundled.digits import ColouredDigits, ColouredDigitsDataModule, DigitClassifier

__all__ = ["ColouredDigits", "ColouredDigitsDataModule", "DigitClassifier"]
