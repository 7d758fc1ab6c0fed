"""Embeddings on disk, keyed by content: an image is embedded once, and a changed image or encoder is never a stale hit.

Layout: ``<folder>/v2/<encoder fingerprint>/<checksum>.safetensors``. Each file (a shard) is written once, under a
temporary name, and moved into place, so processes that share a folder cannot harm each other: at worst both compute the
same embedding. A shard that fails its checksum is removed and its images are embedded anew.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from lightning_failures.core.atomic import TEMPORARY
from lightning_failures.core.safetensors_io import DamagedShardError
from lightning_failures.encoders.base import Encoder
from lightning_failures.encoders.cache.shard_file import (
    SUFFIX,
    Array,
    Pending,
    Shard,
    read_shard,
    to_half,
    write_shard,
)
from lightning_failures.errors import CacheError, DataError

_LAYOUT = "v2"  # another layout is another folder, so that versions can share a cache
_AT_ONCE = 256  # rows rounded or copied at once: they stay in a processor's cache
_BESIDE = "(-[0-9a-f]{16})?"  # what EmbeddingStore.beside puts behind the name of a folder
_DAY = 24 * 60 * 60
_GIB = 2**30


def content_keys(images: Tensor, *, salt: str = "") -> Tensor:
    """Hash each image: 128 bits of XXH3 over its bytes, dtype and shape, and the salt.

    Give the images as the loader yields them, and say in ``salt`` how they are turned into the encoder's input (for
    instance the normalisation that is undone): arithmetic before hashing may differ in the last bit between batches.

    Args:
        images: (B, ...) of any dtype, on any device.
        salt: What else the embedding depends on, beside the encoder.

    Returns:
        (B, 2) int64 on the CPU.

    >>> images = torch.zeros(2, 3, 4, 4)
    >>> keys = content_keys(images)
    >>> bool((keys[0] == keys[1]).all()), bool((keys == content_keys(images, salt="[0, 255]")).any())
    (True, False)
    """
    about = xxhash.xxh3_64_intdigest(f"{salt}|{images.dtype}|{tuple(images.shape[1:])}".encode())
    if len(images) == 0 or images[0].numel() == 0:
        return torch.full((len(images), 2), about % 2**63)
    rows = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    digests = b"".join(xxhash.xxh3_128_digest(row, seed=about) for row in rows)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").astype(np.int64).reshape(-1, 2))


def embed(encoder: Encoder, store: EmbeddingStore, images: Tensor, *, keys: Tensor | None = None) -> Tensor:
    """Make sure that the store holds the embeddings of a batch; only images that it lacks are encoded, each once.

    Args:
        encoder: Its fingerprint must be the store's.
        store: Takes the new embeddings.
        images: (B, C, H, W) in [0, 1].
        keys: (B, 2) from :func:`content_keys` where they were taken from the images before a conversion; by default
            they are those of ``images``.

    Returns:
        (B, 2) int64: the keys, for :meth:`EmbeddingStore.get`.
    """
    keys = content_keys(images) if keys is None else keys
    rows = store.missing(keys).nonzero().flatten()
    if len(rows):
        rows = rows[_first_of_each(keys[rows].numpy())]
        store.put(keys[rows], encoder.encode_images(images[rows.to(images.device)]))
    return keys


class EmbeddingCache:
    """A folder of embeddings of any number of encoders, with a size limit.

    When the limit is passed, the shards that were not opened for the longest time are removed. A folder that cannot be
    written costs one warning and the speed of the next run, nothing else.

    Args:
        folder: Where; by default :func:`default_cache_folder`. It is made when something is written.
        max_bytes: Upper limit of all shards together.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = EmbeddingCache(folder).store("fingerprint of an encoder")
    ...     keys = content_keys(torch.rand(3, 1, 8, 8))
    ...     store.put(keys, torch.ones(3, 4))
    ...     store.flush()
    ...     EmbeddingCache(folder).store("fingerprint of an encoder").get(keys).shape
    torch.Size([3, 4])
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int = 4 * _GIB) -> None:
        self.folder = default_cache_folder() if folder is None else Path(folder).expanduser()
        self.max_bytes = max_bytes

    def store(self, fingerprint: str) -> EmbeddingStore:
        """Open the embeddings of one encoder."""
        return EmbeddingStore(fingerprint, self)

    def size(self) -> int:
        """Bytes of all shards."""
        return sum(stat.st_size for _, stat in self._files())

    def evict(self) -> int:
        """Remove the least recently opened shards until the limit holds; return the bytes freed."""
        for folder in _subfolders(self.folder / _LAYOUT):
            for path, stat in _listing(folder, (TEMPORARY,)):
                if time.time() - stat.st_mtime > _DAY:  # left by a process that was killed while it wrote
                    _remove(path)
        files = sorted(self._files(), key=lambda item: item[1].st_mtime_ns)
        excess = sum(stat.st_size for _, stat in files) - self.max_bytes
        freed = 0
        for path, stat in files:
            if freed >= excess:
                break
            freed += stat.st_size if _remove(path) else 0
        return freed

    def purge(self, fingerprint: str | None = None) -> int:
        """Remove all embeddings, or those of one encoder and what is kept beside them; return the bytes freed.

        Other files are left alone.
        """
        root = self.folder / _LAYOUT
        folders = _subfolders(root)
        if fingerprint is not None:
            own = _folder_name(fingerprint)
            folders = [path for path in folders if re.fullmatch(re.escape(own) + _BESIDE, path.name)]
        freed = 0
        for folder in folders:
            for path, stat in _listing(folder, (SUFFIX, TEMPORARY)):
                freed += stat.st_size if _remove(path) else 0
            with contextlib.suppress(OSError):
                folder.rmdir()
        with contextlib.suppress(OSError):
            root.rmdir()
        return freed

    def _shard_folder(self, fingerprint: str) -> Path:
        return self.folder / _LAYOUT / _folder_name(fingerprint)

    def _files(self) -> list[tuple[Path, os.stat_result]]:
        return [item for folder in _subfolders(self.folder / _LAYOUT) for item in _listing(folder, (SUFFIX,))]


class EmbeddingStore:
    """The embeddings of one encoder: look up what is missing, put it, get all, flush once an epoch.

    Embeddings are stored in float16 where this keeps a row to within 0.1 % of its length, else in float32. What is put
    is rounded at once, so that the first epoch sees the same bits as all later ones. Not safe for threads.

    Args:
        fingerprint: Of the encoder.
        cache: Where shards are kept; None keeps everything in memory.
    """

    def __init__(self, fingerprint: str, cache: EmbeddingCache | None = None) -> None:
        self.fingerprint = fingerprint
        self._cache = cache
        self._folder = None if cache is None else cache._shard_folder(fingerprint)
        self._shards: list[Shard] = []
        self._pending = Pending(), Pending()  # in float16, in float32
        self._seen: set[str] = set()
        self._used: tuple[set[Path], set[Path]] = set(), set()  # in this pass, in the one before
        self._dim: int | None = None
        self.refresh()

    def beside(self, kind: str) -> EmbeddingStore:
        """Open a store of its own for other vectors that this encoder gives of images, such as flattened heat maps.

        Args:
            kind: What they are and what they depend on beside encoder and image, their length included.

        >>> EmbeddingStore("fec0").beside("maps 8x8").fingerprint
        'fec0-f845141ef5f21e5e'
        """
        return EmbeddingStore(
            f"{_folder_name(self.fingerprint)}-{xxhash.xxh3_64_hexdigest(kind.encode())}", self._cache
        )

    def refresh(self) -> None:
        """Open the shards that other processes have written since. Damaged ones are removed, with one warning."""
        if self._folder is None:
            return
        damaged: list[str] = []
        for path, _ in _listing(self._folder, (SUFFIX,)):
            if path.name in self._seen:
                continue
            self._seen.add(path.name)
            try:
                shard = read_shard(path, self.fingerprint)
                if self._dim not in (None, shard.embeddings.shape[1]):
                    raise DamagedShardError(f"embeddings of length {shard.embeddings.shape[1]}, not {self._dim}")
            except FileNotFoundError:  # evicted between listing and reading
                continue
            except DamagedShardError as error:
                damaged.append(f"{path.name} ({error}{'; removed' if _remove(path) else ''})")
            except OSError as error:
                damaged.append(f"{path.name} ({error.strerror or error})")
            else:
                self._dim = shard.embeddings.shape[1]
                self._shards.append(shard)
        if damaged:
            warnings.warn(
                f"{len(damaged)} file(s) of the embedding cache in {self._folder} cannot be used and their images are "
                f"embedded anew: {', '.join(damaged[:3])}{' ...' if len(damaged) > 3 else ''}",
                stacklevel=2,
            )

    def missing(self, keys: Tensor) -> Tensor:
        """Which keys (N, 2) have no embedding here: (N,) bool."""
        missing = np.ones(len(keys), dtype=bool)
        for rows, _, _ in self._find(_as_array(keys)):
            missing[rows] = False
        return torch.from_numpy(missing)

    def put(self, keys: Tensor, embeddings: Tensor) -> None:
        """Add embeddings (N, D) under keys (N, 2). A key that is already here keeps its embedding.

        Raises:
            DataError: Shapes that do not match, or values that are not finite.
        """
        array, values = _as_array(keys), embeddings.detach().to("cpu", torch.float32)
        if values.ndim != 2 or len(values) != len(array) or self._dim not in (None, values.shape[1]):
            expected = f"({len(array)}, {'D' if self._dim is None else self._dim})"
            raise DataError(f"the encoder must give {expected} for {len(array)} images, it gave {tuple(values.shape)}.")
        if values.numel() and not all(bound.isfinite() for bound in values.aminmax()):
            raise DataError("the encoder gave embeddings that are not finite.")
        self._dim = values.shape[1]
        new = np.flatnonzero(self.missing(keys))
        new = new[_first_of_each(array[new])]
        for start in range(0, len(new), _AT_ONCE):
            rows = new[start : start + _AT_ONCE]
            some = values[torch.from_numpy(rows)]
            half, fits = to_half(some)
            for pending, rounded, mine in ((self._pending[0], half, fits), (self._pending[1], some, ~fits)):
                pending.add(array[rows[mine.numpy()]], rounded[mine].numpy())

    def get(self, keys: Tensor) -> Tensor:
        """The embeddings of keys (N, 2) as (N, D) float32.

        Raises:
            CacheError: Some key has no embedding; ``missing`` tells which.
        """
        array = _as_array(keys)
        for attempt in range(2):
            out = np.empty((len(keys), self._dim or 0), dtype=np.float32)
            lacking = len(keys)
            for rows, source, places in self._find(array):
                embeddings, order = source.embeddings, np.argsort(places)  # in the order of the file
                source.prefetch(places[order])
                for start in range(0, len(order), _AT_ONCE):
                    some = order[start : start + _AT_ONCE]
                    out[rows[some]] = embeddings[places[some]]
                lacking -= len(rows)
            if lacking == 0:
                return torch.from_numpy(out)
            if attempt == 0:
                self.refresh()  # another process may have written them
        raise CacheError(f"{lacking} of {len(keys)} images have no embedding yet: put them first.")

    def flush(self, *, order: Tensor | None = None) -> None:
        """Write what was put since the last flush as a shard (two if some rows need float32), then keep the limit.

        Args:
            order: Keys (M, 2) in the order in which their embeddings shall lie in the file, for instance by class:
                what lies together is read fast from a disk. The others follow as they were put, by default all.
        """
        wanted = np.empty((0, 2), dtype=np.int64) if order is None else _as_array(order)
        written = [pending.shard(wanted) for pending in self._pending if len(pending)]
        self._pending = Pending(), Pending()
        self._shards += [self._written(shard) for shard in written]
        if self._cache is not None and written:
            self._cache.evict()

    def let_go(self) -> None:
        """Close the shards that are evicted and were neither written nor looked into since the call before the last.

        Call it between two passes over the data. Without it a shard stays open, and its space on disk taken, for as
        long as the store lives, which is much where images change in each pass.
        """
        used = self._used[0] | self._used[1]
        self._shards = [one for one in self._shards if one.file is None or one.file in used or _is_there(one.file)]
        self._used = set(), self._used[0]

    def _written(self, shard: Shard) -> Shard:
        """The shard as it is on disk, or, where it cannot be written, as it is in memory."""
        if self._folder is None or self._cache is None:
            return shard
        try:
            if shard.nbytes > self._cache.max_bytes:
                raise OSError(f"a shard of {shard.nbytes:,} bytes is larger than max_bytes={self._cache.max_bytes:,}")
            path = write_shard(shard, self._folder, self.fingerprint)
            self._seen.add(path.name)
            self._used[0].add(path)
            return read_shard(path, self.fingerprint)
        except (OSError, DamagedShardError) as error:
            warnings.warn(
                f"The embedding cache {self._folder} cannot be written ({error}). Embeddings stay in memory, and the "
                "next run computes them anew. Another folder can be named with LIGHTNING_FAILURES_CACHE.",
                stacklevel=3,
            )
            self._folder = None
            return shard

    def _find(self, keys: Array) -> Iterator[tuple[Array, Shard | Pending, Array]]:
        """Yield numbers of rows of ``keys`` that are here, each at most once, where they are, and at which places."""
        if any(shard.truncated for shard in self._shards):
            warnings.warn(
                f"Files of the embedding cache in {self._folder} were cut short while they were in use. Their images "
                "are embedded anew at the next validation.",
                stacklevel=4,
            )
            self._shards = [shard for shard in self._shards if not shard.truncated]
        rows = np.argsort(keys[:, 0])  # sorted keys are found faster
        sources: list[Shard | Pending] = [*self._shards, *self._pending]
        for source in sources:
            places = source.find(keys[rows])
            here = places >= 0
            if here.any():
                if isinstance(source, Shard) and source.file is not None:
                    self._used[0].add(source.file)
                yield rows[here], source, places[here]
                rows = rows[~here]


def default_cache_folder() -> Path:
    """``$LIGHTNING_FAILURES_CACHE``, else where the system keeps caches: ``~/.cache/lightning_failures`` on Linux."""
    if chosen := os.environ.get("LIGHTNING_FAILURES_CACHE"):
        return Path(chosen).expanduser()
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "lightning_failures"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "lightning_failures"


def _folder_name(fingerprint: str) -> str:
    plain = re.fullmatch(r"[0-9A-Za-z_-]{1,64}", fingerprint)
    return fingerprint if plain else xxhash.xxh3_128_hexdigest(fingerprint.encode())


def _first_of_each(keys: Array) -> Array:
    """The first row of each of the keys (N, 2), ascending."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    again = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return np.sort(np.delete(order, np.flatnonzero(again) + 1))


def _as_array(keys: Tensor) -> Array:
    array: Array = keys.detach().cpu().contiguous().numpy()
    if array.dtype != np.int64 or array.ndim != 2 or array.shape[1] != 2:
        raise DataError(f"keys must be (N, 2) int64 from content_keys, got {array.shape} {array.dtype}.")
    return array


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # of a network disk that is out of reach
        return True


def _subfolders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir()]
    except OSError:
        return []


def _listing(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, os.stat_result]]:
    """Files of a folder that may change while it is read, by name; none where it does not exist."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith(suffixes))
    except OSError:
        return []
    listed = []
    for path in paths:
        with contextlib.suppress(OSError):
            listed.append((path, path.stat()))
    return listed
