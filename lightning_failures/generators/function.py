"""A function of the user as a generator, and the conversion of its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_failures.errors import GeneratorError


class FunctionGenerator:
    """A generator that calls a function ``(prompts, seeds) -> images``.

    Args:
        function: Returns one image for each prompt and seed: a list of PIL images of one size, a tensor (B, 3, H, W)
            or an array (B, H, W, 3), uint8 or float in [0, 1]. To release memory it may have a method ``close()``.
        name: Name in the ledger; default: the name of the function.
        licence: Licence of the model that the function uses.

    >>> noise = lambda prompts, seeds: torch.stack(
    ...     [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    ... )
    >>> FunctionGenerator(noise).generate(["a red three"] * 2, [0, 1]).shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self, function: Callable[[list[str], list[int]], Any], *, name: str | None = None, licence: str = "unknown"
    ) -> None:
        self.function = function
        self.name = name or str(getattr(function, "__name__", type(function).__name__))
        self.licence = licence

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Generate one image for each prompt and seed: (B, 3, H, W) uint8 on the CPU.

        Errors raised by the function itself are not caught.

        Raises:
            GeneratorError: The function did not return one image for each prompt.
        """
        images = as_uint8(self.function(list(prompts), list(seeds)), self.name)
        if len(images) != len(prompts):
            raise GeneratorError(f"The generator {self.name} returned {len(images)} images for {len(prompts)} prompts.")
        return images

    def close(self) -> None:
        """Call the function's method ``close``, if it has one."""
        close = getattr(self.function, "close", None)
        if callable(close):
            close()


def as_uint8(images: Any, name: str) -> Tensor:
    """Convert the output of a generator to (B, 3, H, W) uint8 on the CPU. Gray images become RGB.

    An image with values that are not finite, as an overflow in half precision produces them, becomes black.

    Args:
        images: PIL images of one size; a tensor (B, 3 or 1, H, W) or an array (B, H, W, 3 or 1), uint8 or float in
            [0, 1].
        name: Name of the generator, for error messages.

    Raises:
        GeneratorError: The images have another type, shape or range.
    """
    if isinstance(images, list | tuple):
        images = _stacked(images, name)
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(images.copy())
        images = images.permute(0, 3, 1, 2) if images.ndim == 4 else images
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1] not in (1, 3):
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise GeneratorError(
            f"The generator {name} must return PIL images, a tensor (B, 3, H, W) or an array (B, H, W, 3); got {found}."
        )
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = _quantised(images, name)
    return torch.cat([images] * (3 // images.shape[1]), dim=1)


def _stacked(images: Sequence[Any], name: str) -> Any:
    """Stack a list of PIL images, arrays or tensors into one array or tensor."""
    if all(isinstance(image, Tensor) for image in images) and len({image.shape for image in images}) == 1:
        return torch.stack(list(images))
    pictures = [np.asarray(image.convert("RGB") if hasattr(image, "convert") else image) for image in images]
    if len({picture.shape for picture in pictures}) != 1:
        sizes = ", ".join(sorted({str(picture.shape) for picture in pictures}))
        raise GeneratorError(f"The generator {name} must return images of one size; got {sizes or 'no images'}.")
    return np.stack(pictures)


def _quantised(images: Tensor, name: str) -> Tensor:
    """Convert float images in [0, 1] to uint8; images that are not finite become black."""
    if not images.is_floating_point():
        raise GeneratorError(f"The generator {name} must return uint8 images, or floats in [0, 1]; got {images.dtype}.")
    images = images.float()
    finite = torch.isfinite(images).flatten(1).all(1)
    images = torch.where(finite.view(-1, 1, 1, 1), images, 0.0)
    low, high = (float(value) for value in images.aminmax()) if images.numel() else (0.0, 0.0)
    if low < -0.01 or high > 1.01:
        raise GeneratorError(
            f"The generator {name} must return uint8 images, or floats in [0, 1];"
            f" got values from {low:.3g} to {high:.3g}."
        )
    levels: Tensor = images.clamp(0, 1).mul(255).round()
    return levels.to(torch.uint8)
