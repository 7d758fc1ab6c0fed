"""Synthetic images with captions of which one is right, for testing an encoder.

They reveal untrained or damaged weights, swapped channels, and the tokenizer of another model. They do not reveal a
small loss of quality, such as that of QuickGELU in place of GELU, for which
:class:`~lightning_failures.encoders.OpenCLIPEncoder` checks the built model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_failures.bundled.digits import CLASSES, TINTS
from lightning_failures.bundled.digits.captions import caption
from lightning_failures.bundled.digits.render import draw_images
from lightning_failures.encoders.base import TextEncoder

COLOURS = {
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.6, 0.15),
    "blue": (0.1, 0.2, 0.85),
    "yellow": (0.98, 0.88, 0.1),
    "black": (0.0, 0.0, 0.0),
    "purple": (0.5, 0.1, 0.6),
}
_IMAGE_SIZE = 224
_N_DIGITS = 60


@dataclass(frozen=True)
class ReferenceImages:
    """Images with candidate captions.

    Attributes:
        name: Name for messages.
        images: (N, 3, H, W), float in [0, 1] or uint8.
        texts: M candidate captions.
        kind: (M,) int64, the kind of each caption; several captions may be of one kind.
        truth: (N,) int64, the kind of each image.
        needed: Least zero-shot accuracy of a working encoder.
    """

    name: str
    images: Tensor
    texts: tuple[str, ...]
    kind: Tensor
    truth: Tensor
    needed: float


def coloured_shapes() -> ReferenceImages:
    """Return 18 shapes on white: circle, square and triangle in 6 colours, to be classified by colour (chance: 1 in 6).

    >>> shapes = coloured_shapes()
    >>> shapes.texts[1], len(shapes.images)
    ('a photo of a red square', 18)
    """
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, _IMAGE_SIZE),) * 2, indexing="ij")
    shapes = {
        "circle": x**2 + y**2 < 0.4,
        "square": (x.abs() < 0.6) & (y.abs() < 0.6),
        "triangle": (y.abs() < 0.6) & (x.abs() < (y + 0.6) / 1.8),
    }
    white = torch.ones(3, 1, 1)
    images = [
        torch.where(mask, torch.tensor(rgb)[:, None, None], white)
        for rgb in COLOURS.values()
        for mask in shapes.values()
    ]
    texts = tuple(f"a photo of a {colour} {shape}" for colour in COLOURS for shape in shapes)
    kind = torch.arange(len(texts)) // len(shapes)
    return ReferenceImages("plain shapes", torch.stack(images), texts, kind, kind, needed=0.7)


def coloured_digits() -> ReferenceImages:
    """Return 60 coloured digits of the test split, to be classified by digit and tint (chance: 1 in 100).

    >>> digits = coloured_digits()
    >>> len(digits.texts), digits.texts[0]
    (100, 'a photo of a red zero')
    """
    images, labels, styles = draw_images("test", _N_DIGITS, np.random.default_rng(0))
    texts = tuple(caption(noun, tint=tint) for noun in CLASSES for tint in TINTS)
    truth = labels * len(TINTS) + styles.tint
    return ReferenceImages("coloured digits", images, texts, torch.arange(len(texts)), truth, needed=0.7)


def zero_shot_accuracy(encoder: TextEncoder, known: ReferenceImages) -> float:
    """Return the share of images whose most similar caption is of the right kind."""
    best = (encoder.encode_images(known.images) @ encoder.encode_texts(known.texts).T).argmax(dim=1)
    return float((known.kind[best] == known.truth).float().mean())
