"""Undo the normalisation of the images that the model saw: encoders and people need images in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_failures.core.arrays import finite_rows
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.normalize_transforms import find_normalizing_transform

TOLERANCE = 0.02
"""Largest distance of pixel values from [0, 1] that rounding explains, as of half precision."""

MAX_RINGING = 0.5
"""Largest distance of pixel values from [0, 1] that the ringing of bicubic and Lanczos resizing explains: by torch's
kernel at most 0.45, where a chequerboard of black and white is resized."""

MAX_RINGING_PIXELS = 0.05
"""Largest share of pixel values outside [0, 1] by more than the tolerance. Photographs have 0.1 %, white noise 2 %."""

MAX_RINGING_PIXELS_OF_DRAWINGS = 0.35
"""The same where much of an image is exactly black or white, as digits on black are (resized, up to 24 %)."""

MIN_FLAT_PIXELS = 0.1
"""Share of values that are exactly 0 or 1 in such an image. A wrong normalisation moves them elsewhere."""


class ImageRangeError(ConfigurationError, DataError):
    """Images do not lie in [0, 1] after their normalisation has been undone: another one must be given."""


@dataclass(frozen=True)
class ImageSpace:
    """The space of the user's image batches: uint8, or floats that were normalised by ``(x - mean) / std``.

    Attributes:
        mean: One value, or one for each channel, for images in [0, 1].
        std: One positive value, or one for each channel, for images in [0, 1].
        unknown_transform: Name of a transform that seems to normalise, but in a form that is not known.

    >>> space = ImageSpace(mean=(0.5,), std=(0.25,))
    >>> space.to_unit(torch.tensor([[[[-2.0, 2.0]]]])).flatten().tolist()
    [0.0, 1.0]
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    unknown_transform: str | None = field(default=None, repr=False, compare=False)  # repr is part of cache keys

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise ConfigurationError(
                f"FailureModes(normalization=...) must be (mean, std) with 1 or 3 values each and std > 0, got"
                f" ({self.mean}, {self.std})."
            )

    @property
    def doubt(self) -> str | None:
        """A sentence for the report, if images are taken as they are although a transform seems to normalise them."""
        if self.unknown_transform is None:
            return None
        return (
            f"What {self.unknown_transform} computes is not known. Its images lie in [0, 1] and were taken as they are;"
            " if that is wrong, give FailureModes(normalization=(mean, std))."
        )

    def to_unit(self, images: Tensor) -> Tensor:
        """Undo the normalisation: (B, C, H, W) uint8 or float -> (B, C, H, W) float32 in [0, 1].

        Values slightly outside are clipped: rounding and the ringing of a resize explain them. An image that is not
        finite, or whose values lie far outside [0, 1] unlike those of most others, is NaN as a whole.

        Raises:
            DataError: Not a batch of images with 1 or 3 channels.
            ImageRangeError: The values of at least half of the finite images do not fit the normalisation.

        >>> batch = torch.rand(3, 1, 4, 4)
        >>> batch[1, 0, 2, 2] = float("nan")
        >>> ImageSpace().to_unit(batch).isnan().flatten(1).all(1).tolist()
        [False, True, False]
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"Images have the shape {tuple(images.shape)}; the encoders need (B, 1 or 3, H, W)."
                " Give read_batch to return the right tensor."
            )
        if images.dtype == torch.uint8 or images.numel() == 0:
            return images.float() / 255
        if len(self.mean) not in (1, images.shape[1]):
            raise DataError(f"normalization has {len(self.mean)} means, but the images have {images.shape[1]} channel.")
        shape = (1, -1, 1, 1)
        mean, std = images.new_tensor(self.mean, dtype=torch.float32), images.new_tensor(self.std, dtype=torch.float32)
        unit = images.detach().float() * std.reshape(shape) + mean.reshape(shape)
        low, high = unit.aminmax()
        if low >= -TOLERANCE and high <= 1 + TOLERANCE:  # false for NaN
            return unit.clamp(0, 1)

        finite = finite_rows(unit)
        fits = finite & _fits(unit)
        if not finite.any():
            return torch.full_like(unit, torch.nan)
        if 2 * int(fits.sum()) <= int(finite.sum()):
            raise ImageRangeError(self._range_message(unit[finite]))
        return torch.where(fits[:, None, None, None], unit.clamp(0, 1), torch.nan)

    def to_unit_each(self, images: Tensor) -> tuple[Tensor, ImageRangeError | None]:
        """Do what :meth:`to_unit` does, but judge each image by itself where most images do not fit the normalisation.

        Returns:
            (B, C, H, W) float32, NaN for each image that does not fit; and the error, if most of them do not.

        Raises:
            DataError: Not a batch of images with 1 or 3 channels.
        """
        try:
            return self.to_unit(images), None
        except ImageRangeError as error:
            if len(images) == 1:
                return torch.full_like(images, torch.nan, dtype=torch.float32), error
            return torch.cat([self.to_unit_each(image)[0] for image in torch.split(images, 1)]), error

    def from_unit(self, unit_images: Tensor, like: Tensor) -> Tensor:
        """Do what :meth:`to_unit` undoes: (B, C, H, W) in [0, 1] -> images of the type and on the device of ``like``.

        >>> space = ImageSpace(mean=(0.5,), std=(0.25,))
        >>> space.from_unit(torch.tensor([[[[0.0, 1.0]]]]), torch.empty(0)).flatten().tolist()
        [-2.0, 2.0]
        """
        if not like.is_floating_point():
            return unit_images.mul(255).round().to(like)
        mean, std = unit_images.new_tensor(self.mean), unit_images.new_tensor(self.std)
        return ((unit_images - mean.reshape(1, -1, 1, 1)) / std.reshape(1, -1, 1, 1)).to(like)

    def _range_message(self, unit: Tensor) -> str:
        low, high = unit.aminmax()
        origin = ""
        if self.unknown_transform is not None:
            origin = f" What the transform {self.unknown_transform} computes is not known."
        return (
            f"With normalization=(mean={self.mean}, std={self.std}) undone, images run from {low:.3g} to {high:.3g}"
            f" instead of 0 to 1.{origin} Give the normalization=(mean, std) of your transform, or return images in"
            " [0, 1] from read_batch."
        )


def pixel_problems(images: Tensor, unit_images: Tensor) -> dict[int, str]:
    """Return why images could not be brought to [0, 1], by row.

    Args:
        images: (B, C, H, W), as the model sees them.
        unit_images: The same in [0, 1], NaN where that failed.

    >>> images = torch.tensor([0.5, float("nan"), 900.0]).reshape(3, 1, 1, 1)
    >>> pixel_problems(images, ImageSpace().to_unit_each(images)[0])
    {1: 'NaN or infinite pixels', 2: 'values far outside [0, 1]'}
    """
    finite = finite_rows(images).tolist()
    failed = (~finite_rows(unit_images)).nonzero().flatten().tolist()
    return {row: "values far outside [0, 1]" if finite[row] else "NaN or infinite pixels" for row in failed}


def find_normalization(dataset: Any) -> ImageSpace | None:
    """Return the space of the last ``Normalize`` in a dataset's transforms; None without one.

    The search goes through ``Compose``, ``Subset`` and ``ConcatDataset``. Where the form of the transform is not known,
    the images are taken as they are.

    >>> from torchvision.transforms.v2 import Compose, Normalize
    >>> class Data:
    ...     transform = Compose([Normalize([0.5], [0.2])])
    >>> find_normalization(Data())
    ImageSpace(mean=(0.5,), std=(0.2,))
    """
    found = find_normalizing_transform(dataset)
    if found is None:
        return None
    if found.mean is None or found.std is None:
        return ImageSpace(unknown_transform=found.name)
    return ImageSpace(found.mean, found.std)


def _fits(unit: Tensor) -> Tensor:
    """Return which images (B, C, H, W) lie in [0, 1] up to rounding and ringing: (B,) bool.

    Ringing is judged on all images together that lie near [0, 1], or else on each alone.
    """
    values = unit.flatten(1)
    near = ((values >= -MAX_RINGING) & (values <= 1 + MAX_RINGING)).all(1)  # false for NaN
    if near.any() and _rings(values[near].reshape(1, -1))[0]:
        return near
    return near & _rings(values)


def _rings(values: Tensor) -> Tensor:
    """Return which rows (n, P) hold few values outside [0, 1], as ringing leaves them: (n,) bool."""
    below = (values < -TOLERANCE).float().mean(1)
    above = (values > 1 + TOLERANCE).float().mean(1)
    outside = below + above
    flat = ((values.abs() < 1e-3) | ((values - 1).abs() < 1e-3)).float().mean(1)
    drawn = (flat >= MIN_FLAT_PIXELS) & (torch.minimum(below, above) > 0) & (outside <= MAX_RINGING_PIXELS_OF_DRAWINGS)
    return (outside <= MAX_RINGING_PIXELS) | drawn
