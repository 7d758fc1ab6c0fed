"""Open the encoders of a run, the same on every rank."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from lightning_failures.encoders import Encoder
from lightning_failures.encoders.cache.store import EmbeddingCache
from lightning_failures.encoders.cached import CachedEncoder, open_cached_encoder
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.ranks import Communicator


def open_encoders(
    specs: Mapping[str, str | Path | Encoder | None],
    cache_folder: str | Path | None,
    *,
    device: torch.device,
    ranks: Communicator,
) -> dict[str, CachedEncoder]:
    """Open the encoders that options name; one that any rank cannot load is absent. Collective.

    Args:
        specs: Encoders by option, "encoder" and "robust_encoder"; None: not wanted.
        cache_folder: Folder of the embedding cache; None: the default one.
        device: Device of encoders that are loaded by name.
        ranks: The processes.

    Raises:
        EncoderError: An encoder that the user named cannot be loaded.
        ConfigurationError: The ranks have different weights.
    """
    cache = EmbeddingCache(cache_folder)
    encoders: dict[str, CachedEncoder] = {}
    for option, spec in specs.items():
        opened = open_cached_encoder(spec, cache, device=device, robust=option == "robust_encoder")
        fingerprints = ranks.gather_objects(None if opened is None else opened.encoder.fingerprint)
        if opened is None or None in fingerprints:
            continue
        if len(set(fingerprints)) > 1:
            raise ConfigurationError(
                f"FailureModes: the processes have different weights of {opened.encoder.name} (fingerprints"
                f" {', '.join(sorted({str(one) for one in fingerprints}))}). Give all of them the same file."
            )
        encoders[option] = opened
    return encoders
