"""Protocols of an image generator and of a decoder of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor


@runtime_checkable
class ImageGenerator(Protocol):
    """Generates images from texts, with its own device and dtype. Equal seeds give equal images.

    Attributes:
        name: Name of the model in the ledger of added images: a folder, a hub id, or the name of a function.
        licence: Licence of the weights, verbatim; ``"unknown"`` if it is not stated.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def licence(self) -> str: ...  # noqa: D102

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Generate one image for each prompt and seed: (B, 3, H, W) uint8 on the CPU."""
        ...

    def close(self) -> None:
        """Release the model's memory; the next call loads the model again."""
        ...


@runtime_checkable
class EmbeddingDecoder(ImageGenerator, Protocol):
    """A generator that also decodes embeddings of one CLIP into images (unCLIP).

    Attributes:
        encoder_fingerprint: Fingerprint of the encoder whose embeddings it decodes.
    """

    @property
    def encoder_fingerprint(self) -> str: ...  # noqa: D102

    def decode(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Generate one image for each embedding, unit vectors (B, D): (B, 3, H, W) uint8 on the CPU."""
        ...


def takes_embeddings(generator: ImageGenerator) -> TypeGuard[EmbeddingDecoder]:
    """Return whether the generator can decode embeddings, such as failure directions."""
    return isinstance(generator, EmbeddingDecoder)
