"""Undo the normalisation of the images that the model saw: encoders and people need images in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_failures.errors import ConfigurationError, DataError

TOLERANCE = 0.02
"""Largest distance of pixel values from [0, 1]: half precision rounds, and bicubic resizing overshoots."""


@dataclass(frozen=True)
class ImageSpace:
    """The space of the user's image batches: uint8, or floats that were normalised by ``(x - mean) / std``.

    Attributes:
        mean: One value, or one for each channel, for images in [0, 1].
        std: One positive value, or one for each channel, for images in [0, 1].

    >>> space = ImageSpace(mean=(0.5,), std=(0.25,))
    >>> space.to_unit(torch.tensor([[[[-2.0, 2.0]]]])).flatten().tolist()
    [0.0, 1.0]
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise ConfigurationError(
                f"FailureModes(normalization=...) must be (mean, std) with 1 or 3 values each and std > 0, got"
                f" ({self.mean}, {self.std})."
            )

    def to_unit(self, images: Tensor) -> Tensor:
        """Undo the normalisation: (B, C, H, W) uint8 or float -> (B, C, H, W) float32 in [0, 1].

        Raises:
            DataError: Not a batch of images with 1 or 3 channels, or values that do not fit the normalisation.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise DataError(
                f"Images have the shape {tuple(images.shape)}; the encoders need (B, 1 or 3, H, W)."
                " Give read_batch to return the right tensor."
            )
        if images.dtype == torch.uint8 or len(images) == 0:
            return images.float() / 255
        if len(self.mean) not in (1, images.shape[1]):
            raise DataError(f"normalization has {len(self.mean)} means, but the images have {images.shape[1]} channel.")
        shape = (1, -1, 1, 1)
        mean, std = images.new_tensor(self.mean, dtype=torch.float32), images.new_tensor(self.std, dtype=torch.float32)
        unit = images.detach().float() * std.reshape(shape) + mean.reshape(shape)
        low, high = unit.aminmax()
        if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # also true for NaN
            raise DataError(
                f"With normalization=(mean={self.mean}, std={self.std}) undone, images run from {low:.3g} to {high:.3g}"
                " instead of 0 to 1. Give the normalization=(mean, std) of your transform, or return images in"
                " [0, 1] from read_batch."
            )
        return unit.clamp(0, 1)


def find_normalization(dataset: Any) -> ImageSpace | None:
    """Return the space of the last ``Normalize`` in a dataset's transforms; None without one.

    The search goes through ``Compose``, ``Subset`` and ``ConcatDataset``.

    >>> from torchvision.transforms.v2 import Compose, Normalize
    >>> class Data:
    ...     transform = Compose([Normalize([0.5], [0.2])])
    >>> find_normalization(Data())
    ImageSpace(mean=(0.5,), std=(0.2,))
    """
    for owner in _inner_datasets(dataset):
        for name in ("transform", "transforms"):
            steps = [step for step in _flatten(getattr(owner, name, None)) if type(step).__name__ == "Normalize"]
            if steps:
                return ImageSpace(_floats(steps[-1].mean), _floats(steps[-1].std))
    return None


def _inner_datasets(dataset: Any) -> Iterable[Any]:
    while dataset is not None:
        yield dataset
        concatenated = getattr(dataset, "datasets", None)
        dataset = concatenated[0] if concatenated else getattr(dataset, "dataset", None)


def _flatten(transform: Any) -> Iterable[Any]:
    if transform is None:
        return
    inner = getattr(transform, "transforms", None)  # Compose
    if type(transform).__name__ == "StandardTransform":  # the wrapper of torchvision's datasets
        inner = transform.transform
    if inner is None:
        yield transform
    else:
        for step in inner if isinstance(inner, Sequence | torch.nn.ModuleList) else [inner]:
            yield from _flatten(step)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in torch.as_tensor(values, dtype=torch.float64).reshape(-1))
