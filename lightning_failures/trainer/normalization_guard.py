"""Notice a normalisation that images do not have, although undoing it gives values between 0 and 1.

Undoing a normalisation that was never done maps images from [0, 1] to a narrow band around the mean. No range check
sees that, and encoders and people get washed-out images. Three facts distinguish such images from normalised ones:
images stored with 8 bits lie on a grid of 256 steps; many images nearly always have pixels darker than the mean, which
are negative after a normalisation; and images that were not normalised fill [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_failures.core.arrays import finite_rows
from lightning_failures.errors import DataError
from lightning_failures.trainer.image_space import ImageSpace

NORMALIZATIONS = {
    "none": ((0.0,), (1.0,)),
    "values from 0 to 255": ((0.0,), (1 / 255,)),
    "values from -1 to 1": ((0.5,), (0.5,)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP's": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's (another)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "CIFAR-100's": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "MNIST's": ((0.1307,), (0.3081,)),
}
"""Common normalisations by name: (mean, std)."""

MIN_IMAGES = 8
"""Fewest images that are judged by their values alone: a single one may well be bright everywhere."""

MIN_MEAN = 0.05
"""Smallest mean for which values below 0 can be expected: nothing is darker than black."""

FILLED = (0.15, 0.6)
"""Images in [0, 1] have values below the first and above the second; a band as wide is unlikely by accident."""

_GRID_IMAGES, _GRID_SIDE = 32, 32  # images, and about how many of their rows and columns, that are looked at


def normalization_doubt(images: Tensor, space: ImageSpace) -> str | None:
    """Return why a normalisation cannot be that of the images, with the remedy; None if it may be.

    Dark, bright and low-contrast images are no reason for doubt.

    Args:
        images: (B, C, H, W), as the step receives them, before the normalisation is undone.
        space: The normalisation that would be undone.

    >>> images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    >>> space = ImageSpace((0.5,), (0.25,))
    >>> normalization_doubt(images, space) is None, normalization_doubt((images - 0.5) / 0.25, space) is None
    (False, True)
    """
    plain = ImageSpace()
    if images.dtype == torch.uint8 or not images.numel() or space == plain or images.ndim != 4:
        return None
    some = images[:_GRID_IMAGES].detach().float()
    some = some[finite_rows(some)]
    if not len(some):
        return None
    low, high = (float(bound) for bound in some.aminmax())
    some = some[:, :, :: max(some.shape[2] // _GRID_SIDE, 1), :: max(some.shape[3] // _GRID_SIDE, 1)]
    on_grid = gives_8_bit_images(space, some)
    if low >= 0 and high <= 1:
        fills = len(some) >= MIN_IMAGES and low < FILLED[0] and high > FILLED[1] and min(space.mean) > MIN_MEAN
        if not on_grid and (fills or gives_8_bit_images(plain, some)):
            return (
                f"Images lie between {low:.2g} and {high:.2g} before normalization=(mean={_short(space.mean)},"
                f" std={_short(space.std)}) is undone, so they are not normalised, and undoing it would wash them out."
                " FailureModes sees batches as `on_after_batch_transfer` returns them: normalise there or in the"
                " transforms of the dataset, or give normalization=([0], [1]) if the step itself normalises."
            )
        return None
    usual = None if on_grid else matching_normalization(some)
    if usual is None:
        return None
    mean, std = NORMALIZATIONS[usual]
    return (
        f"normalization=(mean={_short(space.mean)}, std={_short(space.std)}) is not that of the images: undoing"
        f" {usual} gives 8-bit images, and this one does not. Give normalization=({_short(mean)}, {_short(std)}), the"
        " one of your transforms or of `on_after_batch_transfer`."
    )


def matching_normalization(images: Tensor) -> str | None:
    """Return the name of the common normalisation that gives 8-bit images when undone, or None.

    >>> pixels = torch.arange(256.0).reshape(1, 1, 16, 16) / 255
    >>> matching_normalization((pixels - 0.1307) / 0.3081), matching_normalization(pixels * 0.777)
    ("MNIST's", None)
    """
    fitting = (
        name for name, (mean, std) in NORMALIZATIONS.items() if gives_8_bit_images(ImageSpace(mean, std), images)
    )
    return next(fitting, None)


def gives_8_bit_images(space: ImageSpace, images: Tensor) -> bool:
    """Return whether undoing a normalisation gives images as they are stored with 8 bits."""
    try:
        return on_grid(space.to_unit(images))
    except DataError:
        return False


def on_grid(unit: Tensor) -> bool:
    """Return whether nearly all values are multiples of 1/255, as in images stored with 8 bits."""
    steps = unit[finite_rows(unit)].double() * 255
    return bool(((steps - steps.round()).abs() < 0.02).double().mean() > 0.99) and len(torch.unique(steps.round())) > 2


def _short(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]
