"""What the package carries: the coloured digits and small pretrained models.

Files, each importing only from those above it::

    digits  Coloured digits: real handwritten digits with a planted shortcut, and a small classifier that falls for
    models  Small encoders of coloured digits that the package carries, for machines that can download nothing
"""

from lightning_failures.bundled.digits import ColouredDigits, ColouredDigitsDataModule, DigitClassifier

__all__ = ["ColouredDigits", "ColouredDigitsDataModule", "DigitClassifier"]
