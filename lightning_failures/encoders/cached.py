"""An encoder together with its cache, and how the encoder that the user named is loaded."""

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
from lightning_failures.encoders.base import Encoder, gives_texts
from lightning_failures.encoders.cache.store import EmbeddingCache, content_keys, rows_to_embed
from lightning_failures.encoders.load import load_encoder
from lightning_failures.encoders.tolerant import TolerantEncoder
from lightning_failures.errors import EncoderError


class _DefaultEncoder(str):
    """The name of the default encoder; unlike the same name given by the user, it may be unavailable."""

    __slots__ = ()


DEFAULT_ENCODER = _DefaultEncoder("ViT-B-32/openai")

# LightningCLI writes the defaults of all options into config.yaml, where this one must be a plain string
yaml.SafeDumper.add_representer(_DefaultEncoder, lambda dumper, value: dumper.represent_str(str(value)))

_TEXT_SEED = xxhash.xxh3_64_intdigest(b"text")  # texts and images share a store, but no keys


class CachedEncoder(TolerantEncoder):
    """A frozen encoder that encodes each distinct image, and each distinct caption, once.

    Args:
        encoder: The encoder.
        cache: The cache in which its embeddings are kept.

    Attributes:
        store: Its embeddings.
    """

    def __init__(self, encoder: Encoder, cache: EmbeddingCache) -> None:
        super().__init__(encoder)
        self.store = cache.store(encoder.fingerprint)

    def embed(self, images: Tensor, keys: Tensor) -> None:
        """Encode those images (B, C, H, W) in [0, 1] whose keys (B, 2) have no embedding yet.

        An image that is not finite, that the encoder raises an error for, or whose embedding is not finite, costs only
        itself: its key stays missing.

        Raises:
            Exception: The error of the encoder, after it has raised one for many images in a row.
            DataError: The encoder returns another number of embeddings, or embeddings of another length.
        """
        rows = rows_to_embed(self.store, images, keys)
        if len(rows):
            self.store.put(keys[rows], self.encode(images[rows.to(images.device)]))

    def embed_now(self, images: Tensor) -> Tensor:
        """Return the embeddings (B, D) float32 of images (B, C, H, W) in [0, 1], encoding those that are new.

        The embedding of an image that cannot be embedded is NaN.
        """
        keys = content_keys(images)
        self.embed(images, keys)
        return self.look_up_known(keys)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings (M, D) float32 of M texts, encoding those that are new.

        Raises:
            EncoderError: The encoder has no text tower, or no finite embedding for one of the texts.
        """
        if not gives_texts(self.encoder):
            raise EncoderError(f"Encoder {self.encoder.name} has no text tower, so it cannot embed captions.")
        keys = _text_keys(texts)
        missing = self.store.missing(keys).nonzero().flatten().tolist()
        if missing:
            self.store.put(keys[missing], self.encoder.encode_texts([texts[i] for i in missing]))
            failed = self.store.missing(keys).nonzero().flatten().tolist()
            if failed:
                raise EncoderError(
                    f"Encoder {self.encoder.name} gives no finite embedding for {len(failed)} of {len(texts)} captions,"
                    f" such as {texts[failed[0]]!r}."
                )
        return self.look_up(keys)

    def look_up(self, keys: Tensor) -> Tensor:
        """Return the embeddings (N, D) float32 of keys (N, 2) that were embedded before.

        Raises:
            CacheError: A key has no embedding.
        """
        # a store that holds nothing does not know the length of its embeddings
        return self.store.get(keys) if len(keys) else torch.empty(0, self.encoder.dim)

    def look_up_known(self, keys: Tensor) -> Tensor:
        """Return the embeddings (N, D) float32 of keys (N, 2); those of keys that have none are NaN."""
        known = ~self.store.missing(keys)
        if known.all():
            return self.look_up(keys)
        embeddings = torch.full((len(keys), self.encoder.dim), torch.nan)
        embeddings[known] = self.look_up(keys[known])
        return embeddings


def _text_keys(texts: Sequence[str]) -> Tensor:
    """Return the key of each text, 128 bits of XXH3: (M, 2) int64."""
    digests = b"".join(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass"), seed=_TEXT_SEED) for text in texts)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").astype(np.int64).reshape(-1, 2))


def name_of(spec: str | Path | Encoder | None) -> str | None:
    """Return the name of an encoder without loading it."""
    return None if spec is None else str(getattr(spec, "name", spec))


def open_cached_encoder(
    spec: str | Path | Encoder | None, cache: EmbeddingCache, *, device: torch.device, robust: bool = False
) -> CachedEncoder | None:
    """Load an encoder and open its embeddings.

    Args:
        spec: What the user named, see :func:`~lightning_failures.encoders.load_encoder`; or None.
        cache: The cache in which its embeddings are kept.
        device: The device of a loaded model.
        robust: Whether the encoder provides the features of failure trees.

    Returns:
        The encoder with its cache; None for None and, after one warning, for a default encoder that fails to load.

    Raises:
        EncoderError: An encoder named by the user could not be loaded.
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
            f"Could not load the default encoder {spec!s}; only grades will be computed in this run. {error}",
            stacklevel=2,
        )
        return None
    return CachedEncoder(encoder, cache)
