"""Images as text, and no more of them than a page should carry."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

from PIL import Image
from torch import Tensor

_QUALITY = 85


def data_uri(image: Tensor) -> str:
    """Encode an image as PNG or JPEG, whichever is smaller.

    Args:
        image: (3, h, w) uint8 on the CPU.

    >>> import torch
    >>> data_uri(torch.zeros(3, 8, 8, dtype=torch.uint8))[:22]
    'data:image/png;base64,'
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    encoded = {}
    for kind, options in (("png", {"compress_level": 2}), ("jpeg", {"quality": _QUALITY})):
        file = BytesIO()
        picture.save(file, format=kind, **options)
        encoded[kind] = file.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{b64encode(encoded[kind]).decode()}"


class ImageBudget:
    """Encodes images until their text has so many characters; what comes later is left out, and counted."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.omitted = 0

    def add(self, image: Tensor) -> str | None:
        """The image as text, or None where there is no room."""
        if self.left > 0 and len(text := data_uri(image)) <= self.left:
            self.left -= len(text)
            return text
        self.left, self.omitted = 0, self.omitted + 1
        return None
