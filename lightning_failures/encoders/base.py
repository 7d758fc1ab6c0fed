"""Protocols of an encoder. All but the first describe optional abilities: texts, feature maps, gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeGuard, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Encoder(Protocol):
    """A frozen image model with its own device and dtype, outside autocast. It returns float32 tensors on the CPU.

    Attributes:
        name: The name that the user gave, e.g. ``"ViT-B-32/openai"``; for display, not a key.
        fingerprint: Hex digest over architecture, weights, preprocessing and tokenizer. Equal fingerprints mean equal
            outputs (up to rounding between devices and batch sizes), so it can be part of a cache key.
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
    """An encoder of images and texts into one space (CLIP). Both kinds of embedding have unit length."""

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, D) float32 unit vectors on the CPU."""
        ...


@runtime_checkable
class FeatureEncoder(Encoder, Protocol):
    """An encoder whose embedding is the spatial mean of feature maps, so that every feature has a heat map."""

    def encode_maps(self, images: Tensor) -> Tensor:
        """Return the maps before global average pooling: (B, C, H, W) in [0, 1] -> (B, D, h, w) float32 on the CPU."""
        ...


@runtime_checkable
class DifferentiableEncoder(Encoder, Protocol):
    """An encoder whose features are differentiable with respect to the image, so that a feature can be attacked."""

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def view(self, images: Tensor) -> Tensor:
        """Return the part of each image that the model sees: (B, C, H, W) in [0, 1] -> (B, C, h, w) float32."""
        ...

    def differentiable(self) -> AbstractContextManager[Callable[[Tensor], Tensor]]:
        """Enter a block in which features can be differentiated.

        Inside, gradients are enabled even if the caller is in ``inference_mode``, and the model is in eval mode.

        Returns:
            A context manager that yields a function from the output of :meth:`view`, (B, C, h, w) on the device of the
            model, to features (B, D).
        """
        ...


def gives_texts(encoder: Encoder) -> TypeGuard[TextEncoder]:
    """Return whether the encoder embeds texts, so that captions can be scored in its space."""
    return isinstance(encoder, TextEncoder)


def gives_maps(encoder: Encoder) -> TypeGuard[FeatureEncoder]:
    """Return whether the features of the encoder have heat maps.

    An encoder with an ``encode_maps`` method whose layer has no maps sets an attribute ``has_maps = False``.
    """
    return isinstance(encoder, FeatureEncoder) and bool(getattr(encoder, "has_maps", True))


def gives_gradients(encoder: Encoder) -> TypeGuard[DifferentiableEncoder]:
    """Return whether the features of the encoder can be attacked."""
    return isinstance(encoder, DifferentiableEncoder)
