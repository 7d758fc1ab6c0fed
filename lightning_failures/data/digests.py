"""Digests of images: what an example is, whatever its index in a dataset."""

from __future__ import annotations

import numpy as np
import torch
import xxhash
from torch import Tensor

from lightning_failures.errors import DataError

UNKNOWN_DIGEST = -1
"""Digest of an example whose image is not known."""


def image_digests(images: Tensor) -> Tensor:
    """Hash the pixels of each image: 63 bits of XXH3 over its bytes and its shape.

    Floats are rounded to 256 levels first, so that an image keeps its digest when a normalisation is undone in another
    batch, on another device or in half precision up to rounding. The digest depends on no encoder.

    Args:
        images: (B, C, H, W) float in [0, 1], or uint8; on any device.

    Returns:
        (B,) int64 on the CPU, never negative; -1 for an image that is not finite.

    Raises:
        DataError: ``images`` has no dimension of examples.

    >>> images = torch.rand(2, 3, 4, 4)
    >>> bool((image_digests(images) == image_digests((images * 255).round().to(torch.uint8))).all())
    True
    """
    if images.ndim < 2:
        raise DataError(f"Images must have the shape (B, C, H, W), got {tuple(images.shape)}.")
    finite = torch.ones(len(images), dtype=torch.bool)
    pixels = images.detach()
    if pixels.is_floating_point():
        finite = torch.isfinite(pixels).flatten(1).all(1).cpu()
        pixels = (pixels.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    seed = xxhash.xxh3_64_intdigest(str(tuple(images.shape[1:])).encode())
    rows = pixels.cpu().contiguous().flatten(1).numpy()
    hashes = np.array([xxhash.xxh3_64_intdigest(row, seed=seed) >> 1 for row in rows], dtype=np.int64)
    return torch.where(finite, torch.from_numpy(hashes), UNKNOWN_DIGEST)


def file_name_hash(path: str) -> int:
    r"""Hash the name of a file below the root of its dataset: 63 bits of XXH3, the same on every system.

    >>> file_name_hash("cat\\1.png") == file_name_hash("/cat/1.png")
    True
    """
    text = path.replace("\\", "/").lstrip("/")
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) >> 1
