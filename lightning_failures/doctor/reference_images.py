"""Pictures that can be drawn anywhere, with texts of which one is right: does an encoder know images and words at all?

What this can tell: untrained or damaged weights, swapped channels, another model's tokenizer. What it cannot: a small
loss, as by QuickGELU in place of GELU (:class:`~lightning_failures.encoders.OpenCLIPEncoder` looks at the built model
for that).
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
_SIZE = 224
_DIGITS = 60


@dataclass(frozen=True)
class ReferenceImages:
    """Pictures with their truth.

    Attributes:
        name: What they are.
        images: (N, 3, H, W), float in [0, 1] or uint8.
        texts: M candidates.
        kind: (M,) int64: of texts of the right kind, any will do.
        truth: (N,) int64: the kind of each image.
        needed: Least share of images whose best text is of the right kind.
    """

    name: str
    images: Tensor
    texts: tuple[str, ...]
    kind: Tensor
    truth: Tensor
    needed: float


def plain_shapes() -> ReferenceImages:
    """18 plain shapes on white: circle, square and triangle in 6 colours. Asked for is the colour; chance is 1 in 6.

    >>> shapes = plain_shapes()
    >>> shapes.texts[1], len(shapes.images)
    ('a photo of a red square', 18)
    """
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, _SIZE),) * 2, indexing="ij")
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
    """60 handwritten digits in colour, of the sources kept for tests; asked for are digit and tint. Chance: 1 in 100.

    >>> digits = coloured_digits()
    >>> len(digits.texts), digits.texts[0]
    (100, 'a photo of a red zero')
    """
    images, labels, looks = draw_images("test", _DIGITS, np.random.default_rng(0))
    texts = tuple(caption(noun, tint=tint) for noun in CLASSES for tint in TINTS)
    truth = labels * len(TINTS) + looks.tint
    return ReferenceImages("coloured digits", images, texts, torch.arange(len(texts)), truth, needed=0.7)


def zero_shot_accuracy(encoder: TextEncoder, known: ReferenceImages) -> float:
    """The share of the images whose most similar text is of the right kind."""
    best = (encoder.encode_images(known.images) @ encoder.encode_texts(known.texts).T).argmax(dim=1)
    return float((known.kind[best] == known.truth).float().mean())
