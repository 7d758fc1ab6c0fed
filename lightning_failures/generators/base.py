"""What an intervention asks of an image generator: two small protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeGuard, runtime_checkable

from torch import Tensor


@runtime_checkable
class ImageGenerator(Protocol):
    """Makes images from texts, on a device and in a dtype of its own. Equal seeds give equal images.

    Attributes:
        name: What the ledger of added images calls the model: a folder, a hub id, the name of a function.
        licence: Licence of the weights in its own words, ``"unknown"`` where nothing tells it.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def licence(self) -> str: ...  # noqa: D102

    def generate(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Make an image for each prompt, from a seed of its own: (B, 3, H, W) uint8 on the CPU."""
        ...

    def close(self) -> None:
        """Give the memory back; the next call loads the model again."""
        ...


@runtime_checkable
class EmbeddingDecoder(ImageGenerator, Protocol):
    """A generator that also turns embeddings of one CLIP back into images (unCLIP).

    Attributes:
        encoder_fingerprint: ``fingerprint`` of the encoder whose embeddings it takes.
    """

    @property
    def encoder_fingerprint(self) -> str: ...  # noqa: D102

    def decode(self, embeddings: Tensor, seeds: Sequence[int]) -> Tensor:
        """Make an image for each embedding (B, D), unit vectors: (B, 3, H, W) uint8 on the CPU."""
        ...


def takes_embeddings(generator: ImageGenerator) -> TypeGuard[EmbeddingDecoder]:
    """Whether directions can be decoded by this generator."""
    return isinstance(generator, EmbeddingDecoder)
