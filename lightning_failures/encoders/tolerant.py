"""An encoder whose errors cost only the images that cause them."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_failures.encoders.base import Encoder
from lightning_failures.encoders.frozen import first_line

MAX_FAILURES = 32
"""Number of images in a row that an encoder may fail for before it is given up."""


class TolerantEncoder:
    """An encoder that is asked again for the images of a batch singly if it raises an error.

    Args:
        encoder: The encoder.

    Attributes:
        encoder: The encoder.
        last_error: The last error of the encoder on an image, for messages; None if there was none.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder
        self.last_error: str | None = None
        self._failures_in_a_row = 0

    @property
    def problem(self) -> str:
        """Why the last image that has no embedding has none."""
        return f"encoder {self.encoder.name}: {self.last_error or 'no finite embedding'}"

    def encode(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) of images (B, C, H, W) in [0, 1]; NaN where the encoder raises an error.

        Raises:
            Exception: The error of the encoder, after it has raised one for ``MAX_FAILURES`` images in a row.
        """
        try:
            embeddings = self.encoder.encode_images(images)
        except Exception as error:
            if len(images) > 1:
                halves = images.tensor_split(2)
                return torch.cat([self.encode(half).to("cpu", torch.float32) for half in halves])
            self.last_error = f"{type(error).__name__}: {first_line(error)}"
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES:
                raise
            return torch.full((1, self.encoder.dim), torch.nan)
        self._failures_in_a_row = 0
        return embeddings
