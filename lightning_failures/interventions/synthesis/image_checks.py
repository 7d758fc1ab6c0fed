"""Checks of generated images before they join the training set."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_failures.errors import GeneratorError

_DARK = 8  # levels of 255: safety checkers and overflowing half precision give exactly 0
_FLAT = 8  # levels between the darkest and the brightest pixel of a constant image
_SIDE = 16
_ALIKE = 0.01  # mean difference of thumbnails, of the range; noise of 1 % makes 0.005, another digit at least 0.015


def uint8_images(images: Any, count: int, name: str) -> Tensor:
    """Return the output of a generator on the CPU if it is (``count``, 3, H, W) uint8.

    Raises:
        GeneratorError: The output has another type or shape.
    """
    if (
        not isinstance(images, Tensor)
        or images.dtype != torch.uint8
        or images.ndim != 4
        or tuple(images.shape[:2]) != (count, 3)
        or 0 in images.shape
    ):
        got = f"{images.dtype} {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise GeneratorError(
            f"The generator {name} must give ({count}, 3, H, W) uint8 images for {count} prompts, got {got}."
        )
    return images.detach().cpu()


def blank(image: Tensor) -> str | None:
    """Return why an image (3, H, W) uint8 is blank: ``"black"`` or ``"constant"``; None if it is not.

    >>> blank(torch.zeros(3, 8, 8, dtype=torch.uint8)), blank(torch.full((3, 8, 8), 200, dtype=torch.uint8))
    ('black', 'constant')
    """
    if int(image.max()) <= _DARK:
        return "black"
    spread = image.flatten(1).int().amax(1) - image.flatten(1).int().amin(1)
    return "constant" if int(spread.max()) <= _FLAT else None


def thumbnails(images: Tensor) -> Tensor:
    """Shrink images (B, 3, H, W) uint8 to (B, 768) float32 in [0, 1], small enough to keep for every image."""
    return torch.flatten(F.adaptive_avg_pool2d(images.float() / 255, _SIDE), 1)


def near_copy(thumbnail: Tensor, earlier: Tensor) -> bool:
    """Return whether a thumbnail (768,) is nearly equal to one of the earlier ones (n, 768).

    >>> one = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    >>> near_copy(thumbnails(one + 1)[0], thumbnails(one)), near_copy(thumbnails(one.flip(3))[0], thumbnails(one))
    (True, False)
    """
    return bool(((earlier - thumbnail).abs().mean(1) < _ALIKE).any())
