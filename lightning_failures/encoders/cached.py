"""An encoder together with its cache, and how the encoder that the user named is found."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import xxhash
import yaml
from torch import Tensor

from lightning_failures.core.rng import isolated_rng
from lightning_failures.encoders import Encoder, gives_texts, load_encoder
from lightning_failures.encoders.cache.store import EmbeddingCache, content_keys, embed
from lightning_failures.errors import EncoderError


class _DefaultEncoder(str):
    """The default is told apart from the same name typed by the user: only the latter must be there."""

    __slots__ = ()


DEFAULT_ENCODER = _DefaultEncoder("ViT-B-32/openai")

# LightningCLI writes the defaults of all options into config.yaml, where it is a plain name
yaml.SafeDumper.add_representer(_DefaultEncoder, lambda dumper, value: dumper.represent_str(str(value)))


_TEXT = xxhash.xxh3_64_intdigest(b"text")  # texts and images share a store, but no keys


class CachedEncoder:
    """A frozen encoder that looks at every image, and every caption, once."""

    def __init__(self, encoder: Encoder, cache: EmbeddingCache) -> None:
        self.encoder = encoder
        self.store = cache.store(encoder.fingerprint)

    def embed(self, images: Tensor, keys: Tensor) -> None:
        """Encode those of the images (B, C, H, W) in [0, 1] whose keys (B, 2) are not known."""
        embed(self.encoder, self.store, images, keys=keys)

    def embed_now(self, images: Tensor) -> Tensor:
        """Embed images (B, C, H, W) in [0, 1] and return their embeddings (B, D) float32."""
        keys = content_keys(images)
        self.embed(images, keys)
        return self.look_up(keys)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed M texts as (M, D) float32; only those that the cache does not know are encoded.

        Raises:
            EncoderError: The encoder knows no texts.
        """
        if not gives_texts(self.encoder):
            raise EncoderError(f"The encoder {self.encoder.name} knows no texts.")
        keys = _text_keys(texts)
        lacking = self.store.missing(keys).nonzero().flatten().tolist()
        if lacking:
            self.store.put(keys[lacking], self.encoder.encode_texts([texts[i] for i in lacking]))
        return self.look_up(keys)

    def look_up(self, keys: Tensor) -> Tensor:
        """Return the embeddings (N, D) float32 of keys that were embedded before."""
        return self.store.get(keys)


def _text_keys(texts: Sequence[str]) -> Tensor:
    """(M, 2) int64: 128 bits of XXH3 over each text."""
    digests = b"".join(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"), seed=_TEXT) for text in texts)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").astype(np.int64).reshape(-1, 2))


def name_of(spec: str | Path | Encoder | None) -> str | None:
    """What an encoder is called, before it is loaded."""
    return None if spec is None else str(getattr(spec, "name", spec))


def open_cached_encoder(
    spec: str | Path | Encoder | None, cache: EmbeddingCache, *, device: torch.device, robust: bool = False
) -> CachedEncoder | None:
    """Load an encoder. None stays None; so does, with one warning, the default when it cannot be had.

    Raises:
        EncoderError: an encoder that the user named cannot be had.
    """
    if spec is None:
        return None
    try:
        with isolated_rng():
            encoder = load_encoder(spec, device=device, robust=robust)
    except EncoderError as error:
        if not isinstance(spec, _DefaultEncoder):
            raise
        warnings.warn(
            f"The default encoder {spec!s} cannot be had, so FailureModes only grades in this run. {error}",
            stacklevel=2,
        )
        return None
    return CachedEncoder(encoder, cache)
