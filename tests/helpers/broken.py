"""Broken examples and encoders: the pieces of which tests make a validation set in which something fails."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from tests.helpers.toy import ColourEncoder, Images


class Edited(Images):
    """Images of which some are replaced before the normalisation, and some labels."""

    def __init__(self, size=160, *, images=None, labels=None, names=None, **options):
        super().__init__(size, **options)
        for index, edit in (images or {}).items():
            edit(self.images[index])
        self.labels = self.labels.clone()
        for index, label in (labels or {}).items():
            self.labels[index] = label
        self.classes = names or self.classes


def spoil(image):
    image[2, 5, 5] = math.nan


def far(image):
    image.mul_(200)


def mark(image):
    image[2, 5, 5] = 0.987


class Texts(ColourEncoder):
    """An encoder with texts; those that hold a word fail."""

    def __init__(self, failing="\0", how="raise"):
        super().__init__("texts")
        self.failing, self.how = failing, how

    def encode_texts(self, texts):
        rows = torch.randn(len(texts), self.dim, generator=torch.Generator().manual_seed(len(texts)))
        for row, text in zip(rows, texts, strict=True):
            if self.failing in text:
                if self.how == "raise":
                    raise RuntimeError("no such token")
                row[3] = math.nan
        return F.normalize(rows, dim=1)


class Marked(ColourEncoder):
    """An encoder that fails for marked images, by an exception or by NaN; or for all."""

    def __init__(self, how="nan", *, every=False, name="marked"):
        super().__init__(f"{name}-{how}-{every}")
        self.how, self.every, self.calls = how, every, 0

    def encode_images(self, images):
        self.calls += 1
        rows = super().encode_images(images)
        failing = ((images[:, 2, 5, 5] - 0.987).abs() < 1e-4) | self.every
        if self.how == "raise" and failing.any():
            raise RuntimeError("broken image")
        rows[failing] = math.nan if self.how == "nan" else math.inf
        return rows
