"""Turn images in [0, 1] into the input of a frozen model: check, resize, crop, normalise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_failures.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_TOLERANCE = 1e-3  # a normalisation undone in half precision leaves values slightly outside [0, 1]


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalise: the tensor form of what evaluation transforms do to one PIL image.

    The steps and the rounding of sizes follow ``open_clip.image_transform_v2`` and timm's evaluation transform. One
    departure: PIL rounds to 256 levels after each of its two passes and tensors do not, which moves a pixel by about
    one level before normalisation.

    Attributes:
        size: (height, width) of the model's input, or None to keep the size of the images.
        mean: Value subtracted from each channel of an image in [0, 1].
        std: Value by which each channel is then divided.
        interpolation: ``"bicubic"`` or ``"bilinear"``, both with antialiasing, as PIL does.
        resize_mode: ``"shortest"`` edge to ``size``, then crop; ``"longest"`` edge to ``size``, then pad; ``"squash"``.
        crop: With ``"shortest"``: ratio of the crop to the resized shortest edge, e.g. 0.875.
        fill: Value in [0, 1] of the padding of ``"longest"``.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    crop: float = 1.0
    fill: float = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        """Prepare images: (B, C, H, W) float32 in [0, 1] -> (B, len(mean), h, w) float32, normalised.

        >>> Preprocessing(size=(8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)(torch.ones(2, 1, 12, 10)).shape
        torch.Size([2, 3, 8, 8])
        """
        return self.normalize(self.view(images))

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise the output of :meth:`view`: subtract the mean and divide by the standard deviation."""
        mean = torch.tensor(self.mean, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        std = torch.tensor(self.std, dtype=images.dtype, device=images.device).view(-1, 1, 1)
        return (images - mean) / std

    def view(self, images: Tensor) -> Tensor:
        """Return the part of each image that the model sees, (B, len(mean), h, w) in [0, 1]; heat maps cover it."""
        return self._resize(_match_channels(images, len(self.mean)))

    def _resize(self, images: Tensor) -> Tensor:
        if self.size is None:
            return images
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms import functional as F

        height, width = images.shape[-2:]
        target_height, target_width = self.size
        if self.resize_mode == "squash":
            resized = [target_height, target_width]
        elif self.resize_mode == "longest":
            ratio = max(height / target_height, width / target_width)
            resized = [round(height / ratio), round(width / ratio)]
        elif target_height == target_width:
            edge = math.floor(target_height / self.crop)
            resized = [int(edge * height / min(height, width)), int(edge * width / min(height, width))]
        else:
            ratio = min(height / target_height, width / target_width) * self.crop
            resized = [round(height / ratio), round(width / ratio)]
        mode = InterpolationMode(self.interpolation)
        for step in ([height, resized[1]], resized):  # as PIL does: first rows, then columns, clipped after each
            images = F.resize(images, step, mode, antialias=True).clamp(0, 1)
        if self.resize_mode == "longest":
            missing = target_height - resized[0], target_width - resized[1]
            left_top_right_bottom = [missing[1] // 2, missing[0] // 2, (missing[1] + 1) // 2, (missing[0] + 1) // 2]
            images = F.pad(images, left_top_right_bottom, fill=self.fill)
        else:
            images = F.center_crop(images, [target_height, target_width])
        return images


def check_unit_images(images: Tensor) -> Tensor:
    """Return images as float32 in [0, 1].

    Args:
        images: (B, C, H, W), float in [0, 1], or uint8, which is divided by 255. C is 1 or 3.

    Raises:
        DataError: Another shape or dtype, values outside [0, 1] by more than 0.001, or values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape[2:]:
        raise DataError(
            f"Images must be (B, C, H, W) with 1 or 3 channels; got a tensor of shape {tuple(images.shape)}."
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise DataError(f"Images must be float in [0, 1] or uint8; got {images.dtype}.")
    images = images.detach().float()
    if len(images) == 0:
        return images
    low, high = (float(x) for x in images.aminmax())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # a NaN fails both comparisons
        raise DataError(
            f"Images must lie in [0, 1]; these span {low:.3g} to {high:.3g}. "
            "If they are normalised, undo it first (normalization=(mean, std)); if they contain NaN, check the loader."
        )
    return images.clamp(0, 1)


def _match_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    raise DataError(f"The model takes images with {channels} channel(s); got {images.shape[1]}.")
