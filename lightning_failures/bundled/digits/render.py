"""Render source digits in colour as 32 x 32 RGB images, and split the source digits.

The source is the test part of the UCI "Optical Recognition of Handwritten Digits", 1,797 digits of 8 x 8 pixels, which
scikit-learn includes. Each belongs to training, validation or test whatever the seed of an experiment, so that no model
trained here (classifier or encoder) ever sees a validation or test digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

DigitSplit = Literal["train", "validation", "test"]
SPLITS: tuple[DigitSplit, ...] = ("train", "validation", "test")
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
IMAGE_SIZE = 32

TINTS = {
    "red": (0.90, 0.08, 0.10),
    "orange": (1.00, 0.55, 0.00),
    "yellow": (0.96, 0.90, 0.10),
    "lime": (0.55, 1.00, 0.25),
    "green": (0.00, 0.50, 0.15),
    "cyan": (0.00, 0.85, 0.90),
    "blue": (0.10, 0.20, 0.95),
    "purple": (0.45, 0.05, 0.65),
    "pink": (1.00, 0.45, 0.80),
    "brown": (0.45, 0.25, 0.08),
}
"""Name -> RGB in [0, 1]."""
BACKGROUNDS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0), "gray": (0.5, 0.5, 0.5)}
STROKES = ("thin", "thick")
POSTURES = ("upright", "slanted")

_STROKE_LEVEL = torch.tensor([0.56, 0.32])  # ink above this level of the interpolated 8 x 8 image is drawn
_POSTURE_SHEAR = torch.tensor([0.0, 0.4])
_EDGE = 12.0  # steepness of the edge between ink and background


@dataclass(frozen=True)
class Looks:
    """Appearance of N digits: indices, (N,) int64, into ``TINTS``, ``BACKGROUNDS``, ``STROKES`` and ``POSTURES``."""

    tint: Tensor
    background: Tensor
    stroke: Tensor
    posture: Tensor

    def __len__(self) -> int:
        return len(self.tint)


@cache
def source_digits() -> tuple[Tensor, Tensor]:
    """Return the 1,797 digits: images (1797, 8, 8) float32 in [0, 1] and labels (1797,) int64. Do not modify them."""
    data = load_digits()
    images = torch.from_numpy(data.images / 16.0).float()
    return images, torch.from_numpy(data.target).long()


@cache
def source_split(split: DigitSplit) -> Tensor:
    """Return the indices of the source digits of a split, ascending: 60 % of each class to train, 20 % to the others.

    >>> [len(source_split(part)) for part in SPLITS]
    [1078, 360, 359]
    """
    rng = np.random.default_rng(1797)
    labels = source_digits()[1].numpy()
    parts = []
    for digit in range(len(CLASSES)):
        members = rng.permutation(np.flatnonzero(labels == digit))
        start, stop = round(0.6 * len(members)), round(0.8 * len(members))
        parts.append({"train": members[:start], "validation": members[start:stop], "test": members[stop:]}[split])
    return torch.from_numpy(np.sort(np.concatenate(parts)))


def draw_looks(size: int, rng: np.random.Generator) -> Looks:
    """Draw the appearance of ``size`` digits, every attribute uniform and independent of the others."""
    counts = (len(TINTS), len(BACKGROUNDS), len(STROKES), len(POSTURES))
    return Looks(*(torch.from_numpy(rng.integers(count, size=size)) for count in counts))


def render(digits: Tensor, looks: Looks, rng: np.random.Generator) -> Tensor:
    """Render digits in colour, each with a small random scale, rotation and shift.

    Args:
        digits: (N, 8, 8) float in [0, 1], the ink.
        looks: Appearance of the N digits.
        rng: Random generator of scale, rotation and shift.

    Returns:
        (N, 3, 32, 32) uint8.

    >>> rng = np.random.default_rng(0)
    >>> render(source_digits()[0][:4], draw_looks(4, rng), rng).shape
    torch.Size([4, 3, 32, 32])
    """
    grid = F.affine_grid(_jitter(looks, rng), [len(looks), 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    ink = F.grid_sample(digits[:, None].float(), grid, mode="bicubic", padding_mode="zeros", align_corners=False)
    opacity = torch.sigmoid(_EDGE * (ink - _STROKE_LEVEL[looks.stroke].view(-1, 1, 1, 1)))
    opacity = ((opacity - 0.1) / 0.8).clamp(0, 1)  # (N, 1, 32, 32); the background stays free of ink
    tint = torch.tensor(list(TINTS.values()))[looks.tint].view(-1, 3, 1, 1)
    background = torch.tensor(list(BACKGROUNDS.values()))[looks.background].view(-1, 3, 1, 1)
    return torch.lerp(background, tint, opacity).mul(255).round().to(torch.uint8)


def draw_images(split: DigitSplit, size: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Looks]:
    """Render a random sample of one split, every attribute uniform and nothing planted.

    Returns:
        Images (N, 3, 32, 32) uint8, digits (N,) int64, and their appearance.
    """
    sources = source_split(split)
    sources = sources[torch.from_numpy(rng.integers(len(sources), size=size))]
    looks = draw_looks(size, rng)
    images, labels = source_digits()
    return render(images[sources], looks, rng), labels[sources], looks


def _jitter(looks: Looks, rng: np.random.Generator) -> Tensor:
    """Return affine maps (N, 2, 3) float32 from positions in the image to positions in the source digit."""
    size = len(looks)
    scale = torch.from_numpy(rng.uniform(0.74, 0.86, size))
    angle = torch.from_numpy(rng.uniform(-0.1, 0.1, size))
    shift = torch.from_numpy(rng.uniform(-0.1, 0.1, (size, 2)))
    shear = _POSTURE_SHEAR[looks.posture] + torch.from_numpy(rng.uniform(-0.06, 0.06, size))
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # rotate and scale back, then undo the slant: x += shear * y (y points down, so that the top leans to the right)
    linear = torch.stack([cos - shear * sin, sin + shear * cos, -sin, cos], dim=1).view(size, 2, 2)
    return torch.cat([linear, -linear @ shift[:, :, None]], dim=2).float()
