"""Images as PNG or JPEG, and as data URIs for HTML and JSON."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import torch
import xxhash
from PIL import Image
from torch import Tensor

MAX_SIDE = 2048
"""Most pixels on one side of an image that is decoded."""

PNG_PREFIX = "data:image/png;base64,"
_JPEG_PREFIX = "data:image/jpeg;base64,"
_JPEG_QUALITY = 78
_SMALL_PNG = 1024
"""Bytes up to which a PNG is kept without trying JPEG, whose tables alone take 600."""

_PNG_HEADER_END = 24  # 8 bytes of signature, then the IHDR chunk: length, type, width, height


def to_png(image: Tensor) -> bytes:
    """Encode (3, h, w) uint8 as PNG, a seventh larger than the smallest one, in a third of the time."""
    file = BytesIO()
    _pillow(image).save(file, format="PNG", compress_level=2)
    return file.getvalue()


def data_uri(image: Tensor, *, lossless: bool = True) -> str:
    """Encode an image as a data URI: PNG, or JPEG if it may be lossy and that is clearly smaller.

    Args:
        image: (3, h, w) uint8 on the CPU.
        lossless: Whether all pixels must be kept.

    >>> data_uri(torch.zeros(3, 2, 2, dtype=torch.uint8))[:22]
    'data:image/png;base64,'
    """
    return ImageEncoder().uri(image, lossless=lossless)


class ImageEncoder:
    """Encodes images as :func:`data_uri` does; equal images are compressed once.

    The files of a run and its page show the same images.
    """

    def __init__(self) -> None:
        self._uris: dict[tuple[tuple[int, ...], bytes, bool], str] = {}

    def uri(self, image: Tensor, *, lossless: bool = True) -> str:
        """Encode an image (3, h, w) uint8; see :func:`data_uri`."""
        key = tuple(image.shape), xxhash.xxh3_128_digest(image.contiguous().numpy()), lossless
        if key not in self._uris:
            self._uris[key] = self._encoded(image, lossless=lossless)
        return self._uris[key]

    def _encoded(self, image: Tensor, *, lossless: bool) -> str:
        if lossless:
            return PNG_PREFIX + base64.b64encode(to_png(image)).decode()
        uri = self.uri(image)
        if 3 * (len(uri) - len(PNG_PREFIX)) // 4 <= _SMALL_PNG:
            return uri
        jpeg = BytesIO()
        _pillow(image).save(jpeg, format="JPEG", quality=_JPEG_QUALITY)
        lossy = _JPEG_PREFIX + base64.b64encode(jpeg.getvalue()).decode()
        return lossy if len(lossy) < len(uri) else uri


def read_png_uri(uri: str, *, max_pixels: int) -> Tensor:
    """Decode an untrusted PNG data URI to (3, h, w) uint8; its size is checked before anything is decompressed.

    Args:
        uri: As :func:`data_uri` writes it.
        max_pixels: Most pixels of the image, h * w.

    Raises:
        ValueError: The text is not a PNG, or the image is too large. Pillow raises other errors for damaged images.

    >>> read_png_uri(data_uri(torch.zeros(3, 4, 5, dtype=torch.uint8)), max_pixels=20).shape
    torch.Size([3, 4, 5])
    """
    if not uri.startswith(PNG_PREFIX):
        raise ValueError("an image is not a PNG")
    data = base64.b64decode(uri[len(PNG_PREFIX) :], validate=True)
    if data[12:16] != b"IHDR":  # width and height are in the first chunk of every PNG
        raise ValueError("an image is not a PNG")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:_PNG_HEADER_END], "big")
    if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE or width * height > max_pixels:
        raise ValueError(f"an image of {width} x {height} is too large, or all images together are")
    with Image.open(BytesIO(data), formats=("PNG",)) as image:
        if image.size != (width, height):
            raise ValueError("an image has two sizes")
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
