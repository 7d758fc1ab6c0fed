"""Penultimate features on disk, keyed by image and by the weights of the model, apart from the embeddings.

They lie in a folder of their own inside the cache folder, with a size limit of their own, so they never evict an
embedding, which costs more to compute and stays valid. Features of former weights are deleted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_failures.core.home import default_cache_folder
from lightning_failures.encoders.cache.store import EmbeddingCache, EmbeddingStore
from lightning_failures.encoders.frozen import fingerprint

FOLDER = "penultimate"
"""Name of the folder inside the cache folder."""

MAX_BYTES = 8 * 2**30
"""Size limit of all features together."""

_ROWS = 8192  # of a block


class FeatureStore:
    """The penultimate features of one model, for its current weights.

    Args:
        cache_folder: Folder of the embedding cache; None: the default one.
        max_bytes: Upper limit of the features of all models.

    >>> import tempfile, torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     features = FeatureStore(folder)
    ...     store = features.of_weights(model, head="1")
    ...     same = features.of_weights(model, head="1") is store
    ...     _ = nn.init.zeros_(model[1].weight)  # the head does not count
    ...     still = features.of_weights(model, head="1") is store
    ...     _ = nn.init.zeros_(model[0].weight)
    ...     (same, still, features.of_weights(model, head="1") is store)
    (True, True, False)
    """

    def __init__(self, cache_folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        root = default_cache_folder() if cache_folder is None else Path(cache_folder).expanduser()
        self._cache = EmbeddingCache(root / FOLDER, max_bytes=max_bytes)
        self._store: EmbeddingStore | None = None

    def of_weights(self, module: nn.Module, head: str, **description: Any) -> EmbeddingStore:
        """Open the features of a module, and delete those of its former weights.

        Args:
            module: The module.
            head: Name of the head, whose weights do not count.
            **description: All other factors of the features.
        """
        name = fingerprint(module, without=head, kind=type(module).__qualname__, head=head, **description)
        if self._store is None or self._store.fingerprint != name:
            self.clear()
            self._store = self._cache.store(name)
        return self._store

    def clear(self) -> None:
        """Delete the features of the weights that were seen last."""
        if self._store is not None:
            self._cache.purge(self._store.fingerprint)
        self._store = None


class StoredFeatures:
    """The features of N images, read from disk in blocks of rows.

    Args:
        store: Holds them.
        keys: (N, 2) int64, cache keys of the images.

    Attributes:
        shape: (N, D).
        dtype: float32.

    >>> import torch
    >>> store, keys = EmbeddingStore("memory"), torch.arange(6).reshape(3, 2)
    >>> store.put(keys, torch.ones(3, 4))
    >>> rows = StoredFeatures(store, keys)
    >>> rows.shape, rows[1:].shape
    ((3, 4), (2, 4))
    """

    dtype = np.dtype(np.float32)

    def __init__(self, store: EmbeddingStore, keys: Tensor) -> None:
        self._store, self._keys = store, keys
        self.shape = (len(keys), store.get(keys[:1]).shape[1])

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        """Yield the rows in blocks."""
        return (self[start : start + _ROWS] for start in range(0, len(self), _ROWS))

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        found: NDArray[np.float32] = self._store.get(self._keys[rows]).numpy()
        return found
