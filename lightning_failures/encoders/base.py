"""What the analysis asks of an encoder: small protocols, all but the first for what only some of them can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """A frozen image model with its own device and dtype, outside autocast. All it returns is float32 on the CPU.

    Attributes:
        name: What the user called it, e.g. ``"ViT-B-32/openai"``; for people, not for keys.
        fingerprint: Hex digest over architecture, weights, preprocessing and tokenizer. Equal fingerprints mean equal
            outputs (up to rounding between devices and batch sizes), so the cache may use it as part of a key.
        dim: Length D of an embedding.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    @property
    def dim(self) -> int: ...  # noqa: D102

    def encode_images(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) with values in [0, 1] as (B, D) float32 on the CPU. C is 1 or 3."""
        ...


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An image encoder that shares its space with text (CLIP). Both kinds of embedding have unit length."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, D) float32 unit vectors on the CPU."""
        ...


@runtime_checkable
class FeatureEncoder(Encoder, Protocol):
    """An image encoder whose embedding is the spatial mean of feature maps, so that a feature has a heat map."""

    def encode_maps(self, images: Tensor) -> Tensor:
        """Return the maps before global average pooling: (B, C, H, W) in [0, 1] -> (B, D, h, w) float32 on the CPU."""
        ...


@runtime_checkable
class DifferentiableEncoder(Encoder, Protocol):
    """An image encoder whose features can be differentiated by the image, so that a feature can be attacked."""

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def view(self, images: Tensor) -> Tensor:
        """Return what the model sees of each image, (B, C, H, W) in [0, 1] -> (B, C, h, w) float32 in [0, 1]."""
        ...

    def differentiable(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Open the way in: a function from what the model sees, (B, C, h, w) on its device, to features (B, D).

        Inside the block gradients are on, even where the caller is in ``inference_mode``; the model is in eval mode and
        keeps no trace of them.
        """
        ...


def gives_texts(encoder: Encoder) -> TypeGuard[TextEncoder]:
    """Whether captions can be scored in the space of this encoder."""
    return isinstance(encoder, TextEncoder)


def gives_maps(encoder: Encoder) -> TypeGuard[FeatureEncoder]:
    """Whether the features of this encoder have heat maps.

    An encoder that has the method but, for the layer it reads, no maps says so with an attribute ``has_maps = False``.
    """
    return isinstance(encoder, FeatureEncoder) and bool(getattr(encoder, "has_maps", True))


def gives_gradients(encoder: Encoder) -> TypeGuard[DifferentiableEncoder]:
    """Whether the features of this encoder can be attacked."""
    return isinstance(encoder, DifferentiableEncoder)
