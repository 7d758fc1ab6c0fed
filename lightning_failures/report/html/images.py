"""The images of the page, encoded until they reach the size that a page may have."""

from __future__ import annotations

from torch import Tensor

from lightning_failures.report.image_encoding import ImageEncoder


class ImageBudget:
    """Encodes images until their data URIs have ``limit`` characters; counts the images left out after that."""

    def __init__(self, limit: int, encoder: ImageEncoder) -> None:
        self.left = limit
        self.omitted = 0
        self._encoder = encoder

    def add(self, image: Tensor) -> str | None:
        """Return an image (3, h, w) uint8 as a data URI, or None if the budget is used up."""
        if self.left > 0 and len(text := self._encoder.uri(image, lossless=False)) <= self.left:
            self.left -= len(text)
            return text
        self.left, self.omitted = 0, self.omitted + 1
        return None
