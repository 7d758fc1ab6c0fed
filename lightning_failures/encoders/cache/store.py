"""Embeddings on disk, keyed by content: an image is encoded once, and a changed image or encoder is never a stale hit.

Layout: ``<folder>/v2/<encoder fingerprint>/<checksum>.safetensors``. Each file (a shard) is written once under a
temporary name and moved into place, so processes that share a folder cannot harm each other: at worst they compute the
same embedding twice. A shard that fails its checksum is removed, and its images are embedded again. Many small shards
are joined: the larger one is written before the small ones are removed, by one process at a time.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from lightning_failures.core.arrays import finite_rows
from lightning_failures.core.atomic import TEMPORARY
from lightning_failures.core.home import default_cache_bytes, default_cache_folder
from lightning_failures.core.safetensors_io import DamagedShardError
from lightning_failures.encoders.base import Encoder
from lightning_failures.encoders.cache.index import KeyIndex
from lightning_failures.encoders.cache.shard_file import (
    SUFFIX,
    Array,
    Pending,
    Shard,
    key_order,
    read_shard,
    to_half,
    write_shard,
)
from lightning_failures.errors import CacheError, DataError

_LAYOUT = "v2"  # a changed layout gets another folder, so that versions can share a cache
MAX_SMALL_SHARDS = 16
"""Number of small shards of a store, from which on they are joined."""

SMALL_SHARD = 4 * 2**20
"""Bytes of embeddings below which a shard is small."""

JOINED_SHARD = 64 * 2**20
"""Bytes of embeddings of a shard that small ones are joined to, at most."""

_LOCK = f".joining{TEMPORARY}"  # like all temporary files it is cleared after a day, if its owner was killed
_AT_ONCE = 256  # rows rounded or copied at once: they stay in a processor's cache
_DERIVED = "(-[0-9a-f]{16})?"  # what EmbeddingStore.derived_store appends to the name of a folder
_DAY = 24 * 60 * 60


def content_keys(images: Tensor, *, salt: str = "") -> Tensor:
    """Hash each image: 128 bits of XXH3 over its bytes, dtype and shape, and the salt.

    Hash images as the loader yields them, and describe in ``salt`` how they are turned into the encoder's input (for
    instance the normalisation that is undone): arithmetic before hashing may differ in the last bit between batches.

    Args:
        images: (B, ...) of any dtype, on any device.
        salt: What the embedding depends on besides image and encoder.

    Returns:
        (B, 2) int64 on the CPU.

    >>> images = torch.zeros(2, 3, 4, 4)
    >>> keys = content_keys(images)
    >>> bool((keys[0] == keys[1]).all()), bool((keys == content_keys(images, salt="[0, 255]")).any())
    (True, False)
    """
    seed = xxhash.xxh3_64_intdigest(f"{salt}|{images.dtype}|{tuple(images.shape[1:])}".encode())
    if len(images) == 0 or images[0].numel() == 0:
        return torch.full((len(images), 2), seed % 2**63)
    rows = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()
    digests = b"".join(xxhash.xxh3_128_digest(row, seed=seed) for row in rows)
    return torch.from_numpy(np.frombuffer(digests, dtype="<i8").astype(np.int64).reshape(-1, 2))


def embed(encoder: Encoder, store: EmbeddingStore, images: Tensor, *, keys: Tensor | None = None) -> Tensor:
    """Encode the images of a batch that the store lacks, each distinct image once, and add them to the store.

    An image that is not finite, or has no finite embedding, is left out: its key stays missing.

    Args:
        encoder: The encoder; its fingerprint must be the store's.
        store: Receives the new embeddings.
        images: (B, C, H, W) in [0, 1].
        keys: (B, 2) from :func:`content_keys`, if they were computed from the images before a conversion; by default
            computed from ``images``.

    Returns:
        (B, 2) int64: the keys, for :meth:`EmbeddingStore.get`.
    """
    keys = content_keys(images) if keys is None else keys
    rows = rows_to_embed(store, images, keys)
    if len(rows):
        store.put(keys[rows], encoder.encode_images(images[rows.to(images.device)]))
    return keys


def rows_to_embed(store: EmbeddingStore, images: Tensor, keys: Tensor) -> Tensor:
    """Return the rows of the images (B, ...) that the store lacks and that are finite, each distinct key once."""
    rows = store.missing(keys).nonzero().flatten()
    if not len(rows):
        return rows
    rows = rows[_first_of_each(keys[rows].numpy())]
    return rows[finite_rows(images[rows.to(images.device)]).cpu()]


class EmbeddingCache:
    """A folder of embeddings of any number of encoders, with a size limit.

    Beyond the limit, the least recently opened shards are removed. A folder that cannot be written costs one warning
    and the speed of the next run, nothing else.

    Args:
        folder: The folder, created on the first write; default:
            :func:`~lightning_failures.core.home.default_cache_folder`.
        max_bytes: Upper limit of all shards together; default:
            :func:`~lightning_failures.core.home.default_cache_bytes`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = EmbeddingCache(folder).store("fingerprint of an encoder")
    ...     keys = content_keys(torch.rand(3, 1, 8, 8))
    ...     store.put(keys, torch.ones(3, 4))
    ...     store.flush()
    ...     EmbeddingCache(folder).store("fingerprint of an encoder").get(keys).shape
    torch.Size([3, 4])
    """

    def __init__(self, folder: str | Path | None = None, *, max_bytes: int | None = None) -> None:
        self.folder = default_cache_folder() if folder is None else Path(folder).expanduser()
        self.max_bytes = default_cache_bytes() if max_bytes is None else max_bytes
        self.has_default_limit = max_bytes is None

    def store(self, fingerprint: str) -> EmbeddingStore:
        """Open the embeddings of one encoder."""
        return EmbeddingStore(fingerprint, self)

    def size(self) -> int:
        """Return the bytes of all shards."""
        return sum(stat.st_size for _, stat in self._files())

    def evict(self) -> int:
        """Remove the least recently opened shards until the size limit holds; return the bytes freed."""
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
        """Remove all embeddings; return the bytes freed. Other files in the folder are kept.

        Args:
            fingerprint: Remove only the embeddings of this encoder, with those of its derived stores.
        """
        root = self.folder / _LAYOUT
        folders = _subfolders(root)
        if fingerprint is not None:
            own = _folder_name(fingerprint)
            folders = [path for path in folders if re.fullmatch(re.escape(own) + _DERIVED, path.name)]
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
    """The embeddings of one encoder: find missing keys, put, get, and flush once an epoch.

    Embeddings are stored in float16 where this keeps a row to within 0.1 % of its length, else in float32. They are
    rounded when they are put, so that the first epoch sees the same bits as all later ones. Not thread-safe.

    Args:
        fingerprint: Fingerprint of the encoder.
        cache: The cache that keeps the shards; None keeps all embeddings in memory.
    """

    def __init__(self, fingerprint: str, cache: EmbeddingCache | None = None) -> None:
        self.fingerprint = fingerprint
        self._cache = cache
        self._folder = None if cache is None else cache._shard_folder(fingerprint)
        self._shards: list[Shard] = []  # without indices of their own
        self._index = KeyIndex.empty()
        self._pending_half = Pending()
        self._pending_full = Pending()
        self._known_files: set[str] = set()
        self._used_now: set[Path] = set()  # shards read or written in this pass over the data
        self._used_before: set[Path] = set()  # and in the pass before
        self._dim: int | None = None
        self._warned_of_limit = False
        self.refresh()

    def derived_store(self, kind: str) -> EmbeddingStore:
        """Open a separate store for other vectors that this encoder computes from images, such as flattened heat maps.

        Args:
            kind: What the vectors are, with everything they depend on besides encoder and image, such as their length.

        >>> EmbeddingStore("fec0").derived_store("maps 8x8").fingerprint
        'fec0-f845141ef5f21e5e'
        """
        digest = xxhash.xxh3_64_hexdigest(kind.encode())
        return EmbeddingStore(f"{_folder_name(self.fingerprint)}-{digest}", self._cache)

    def refresh(self) -> None:
        """Open shards that other processes have written since. Damaged shards are removed, with one warning."""
        if self._folder is None:
            return
        unusable: list[str] = []
        found: list[Shard] = []
        # a file that is gone may have been joined to another one since the folder was listed: list it again
        while self._read_new(found, unusable):
            pass
        self._add(sorted(found, key=lambda shard: -shard.file_size))
        if unusable:
            warnings.warn(
                f"{len(unusable)} file(s) of the embedding cache in {self._folder} cannot be used, and their images "
                f"are embedded again: {', '.join(unusable[:3])}{' ...' if len(unusable) > 3 else ''}",
                stacklevel=2,
            )

    def _read_new(self, found: list[Shard], unusable: list[str]) -> bool:
        """Read the files that are not known, and append their shards and problems; return whether one has vanished."""
        assert self._folder is not None
        any_vanished = False
        for path, _ in _listing(self._folder, (SUFFIX,)):
            if path.name in self._known_files:
                continue
            self._known_files.add(path.name)
            try:
                shard = read_shard(path, self.fingerprint)
                if self._dim not in (None, shard.embeddings.shape[1]):
                    raise DamagedShardError(f"embeddings of length {shard.embeddings.shape[1]}, not {self._dim}")
            except FileNotFoundError:  # evicted, or joined, between listing and reading
                any_vanished = True
            except DamagedShardError as error:
                unusable.append(f"{path.name} ({error}{'; removed' if _remove(path) else ''})")
            except OSError as error:
                unusable.append(f"{path.name} ({error.strerror or error})")
            else:
                self._dim = shard.embeddings.shape[1]
                found.append(shard)
        return any_vanished

    def _add(self, shards: list[Shard]) -> None:
        """Open more shards."""
        self._index = self._index.with_shards(shards, len(self._shards))
        self._shards += [shard.without_index() for shard in shards]

    def _keep(self, kept: list[bool]) -> None:
        """Close the shards that a list of booleans does not select."""
        if not all(kept):
            self._index = self._index.only(np.array(kept, dtype=bool))
            self._shards = [shard for shard, keep in zip(self._shards, kept, strict=True) if keep]

    def missing(self, keys: Tensor) -> Tensor:
        """Return which keys (N, 2) have no embedding here: (N,) bool."""
        array = _as_array(keys)
        order = np.argsort(array[:, 0])  # sorted keys are found faster
        entries = self._index.find(array[order])
        self._note_use(np.unique(self._index.shard[entries[entries >= 0]]))
        rows = order[entries < 0]
        for pending in (self._pending_half, self._pending_full):
            rows = rows[pending.find(array[rows]) < 0]
        missing = np.zeros(len(keys), dtype=bool)
        missing[rows] = True
        return torch.from_numpy(missing)

    def put(self, keys: Tensor, embeddings: Tensor) -> None:
        """Add embeddings (N, D) under keys (N, 2). A key that is already here keeps its embedding.

        An embedding that is not finite is left out, so its key stays missing.

        Raises:
            DataError: Shapes that do not match.
        """
        array = _as_array(keys)
        values = embeddings.detach().to("cpu", torch.float32)
        if values.ndim != 2 or len(values) != len(array) or self._dim not in (None, values.shape[1]):
            expected = f"({len(array)}, {'D' if self._dim is None else self._dim})"
            raise DataError(
                f"The encoder must return {expected} for {len(array)} images; it returned {tuple(values.shape)}."
            )
        finite = finite_rows(values).numpy()
        self._dim = values.shape[1]

        new = np.flatnonzero(self.missing(keys).numpy() & finite)
        new = new[_first_of_each(array[new])]
        for start in range(0, len(new), _AT_ONCE):
            rows = new[start : start + _AT_ONCE]
            full = values[torch.from_numpy(rows)]
            half, fits = to_half(full)
            self._pending_half.add(array[rows[fits.numpy()]], half[fits].numpy())
            self._pending_full.add(array[rows[~fits.numpy()]], full[~fits].numpy())

    def get(self, keys: Tensor) -> Tensor:
        """Return the embeddings of keys (N, 2) as (N, D) float32.

        Raises:
            CacheError: A key has no embedding; see :meth:`missing`.
        """
        array = _as_array(keys)
        for attempt in range(2):
            out = np.empty((len(keys), self._dim or 0), dtype=np.float32)
            n_missing = len(keys)
            for rows, source, places in self._find(array):
                embeddings = source.embeddings
                file_order = np.argsort(places)
                source.prefetch(places[file_order])
                for start in range(0, len(file_order), _AT_ONCE):
                    chunk = file_order[start : start + _AT_ONCE]
                    out[rows[chunk]] = embeddings[places[chunk]]
                n_missing -= len(rows)
            if n_missing == 0:
                return torch.from_numpy(out)
            if attempt == 0:
                self.refresh()  # another process may have written them
        raise CacheError(f"{n_missing} of {len(keys)} images have no embedding yet; put them first.")

    def flush(self, *, order: Tensor | None = None) -> None:
        """Write all pending embeddings as a shard (two if some rows need float32), then enforce the size limit.

        Args:
            order: Keys (M, 2) whose embeddings come first in the file, in this order, for instance by class:
                neighbours are read fast from a disk. The others follow in the order in which they were put.
        """
        first = np.empty((0, 2), dtype=np.int64) if order is None else _as_array(order)
        shards = [pending.shard(first) for pending in (self._pending_half, self._pending_full) if len(pending)]
        self._pending_half = Pending()
        self._pending_full = Pending()
        self._add([self._written(shard) for shard in shards])
        self._join_small_shards()
        if self._cache is not None and shards:
            in_use = [path for path in self._used_now | self._used_before if _exists(path)]
            self._cache.evict()
            if self._cache.has_default_limit and not all(map(_exists, in_use)):
                self._warn_of_limit(self._cache)

    def _warn_of_limit(self, cache: EmbeddingCache) -> None:
        """Warn once that the cache is too small for this run."""
        if not self._warned_of_limit:
            self._warned_of_limit = True
            warnings.warn(
                f"The embedding cache {cache.folder} keeps at most {cache.max_bytes / 2**30:.3g} GiB, less than this"
                " run uses: the next run, or a resumed one, embeds images again. Set LIGHTNING_FAILURES_CACHE_SIZE,"
                f" for instance to '{max(1, math.ceil(2 * cache.max_bytes / 2**30))} GiB'.",
                stacklevel=4,
            )

    def close_unused(self) -> None:
        """Close evicted shards that were neither written nor read since the call before the last one.

        Call it between two passes over the data. Otherwise a shard stays open, and its disk space taken, as long as the
        store lives, which adds up where images change in each pass.
        """
        used = self._used_now | self._used_before
        self._keep([shard.file is None or shard.file in used or _exists(shard.file) for shard in self._shards])
        self._used_before = self._used_now
        self._used_now = set()

    def _written(self, shard: Shard) -> Shard:
        """Write a shard and return it as read from disk; if writing fails, warn once and return it as it is."""
        if self._folder is None or self._cache is None:
            return shard
        try:
            if shard.nbytes > self._cache.max_bytes:
                raise OSError(f"a shard of {shard.nbytes:,} bytes is larger than max_bytes={self._cache.max_bytes:,}")
            path = write_shard(shard, self._folder, self.fingerprint)
            self._known_files.add(path.name)
            self._used_now.add(path)
            return read_shard(path, self.fingerprint)
        except (OSError, DamagedShardError) as error:
            warnings.warn(
                f"The embedding cache {self._folder} cannot be written ({error}). Embeddings stay in memory, and the "
                "next run computes them again. Set LIGHTNING_FAILURES_CACHE to another folder.",
                stacklevel=3,
            )
            self._folder = None
            return shard

    def _find(self, keys: Array) -> Iterator[tuple[Array, Shard | Pending, Array]]:
        """Locate keys; yield for each source the rows of ``keys`` that it holds, the source, and its embedding rows.

        A row is yielded at most once; missing keys are not yielded.
        """
        order = np.argsort(keys[:, 0])  # sorted keys are found faster
        entries = self._find_readable(keys[order])
        rows, entries, rest = order[entries >= 0], entries[entries >= 0], order[entries < 0]
        by_shard = np.argsort(self._index.shard[entries], kind="stable")
        rows, entries = rows[by_shard], entries[by_shard]
        numbers, starts = np.unique(self._index.shard[entries], return_index=True)
        self._note_use(numbers)
        for number, (start, stop) in zip(numbers.tolist(), pairwise([*starts, len(rows)]), strict=True):
            yield rows[start:stop], self._shards[number], self._index.place[entries[start:stop]].astype(np.int64)
        for pending in (self._pending_half, self._pending_full):
            places = pending.find(keys[rest])
            found = places >= 0
            if found.any():
                yield rest[found], pending, places[found]
                rest = rest[~found]

    def _find_readable(self, keys: Array) -> Array:
        """Return the index entry of each key (M, 2), -1 if absent, after closing shards that can no longer be read."""
        entries = self._index.find(keys)
        numbers = np.unique(self._index.shard[entries[entries >= 0]])
        truncated = {number for number in numbers.tolist() if self._shards[number].truncated}
        if not truncated:
            return entries
        warnings.warn(
            f"Files of the embedding cache in {self._folder} became shorter while they were in use. Their images "
            "are embedded again at the next validation.",
            stacklevel=5,
        )
        self._keep([number not in truncated for number in range(len(self._shards))])
        return self._index.find(keys)

    def _note_use(self, numbers: Array) -> None:
        """Remember that shards were used in this pass over the data."""
        files = (self._shards[number].file for number in numbers.tolist())
        self._used_now.update(file for file in files if file is not None)

    def _join_small_shards(self) -> None:
        """Join the small shards on disk, if there are many, to larger ones; another process that does so is left to it.

        A failure leaves the small shards as they are.
        """
        if self._folder is None or self._cache is None:
            return
        for dtype in (np.float16, np.float32):
            numbers = [
                number
                for number, shard in enumerate(self._shards)
                if shard.file is not None and shard.embeddings.dtype == dtype and shard.embeddings.nbytes < SMALL_SHARD
            ]
            if len(numbers) >= MAX_SMALL_SHARDS:
                with contextlib.suppress(OSError, DamagedShardError), _locked(self._folder / _LOCK):
                    self._join(self._joinable(numbers), self._folder)

    def _joinable(self, numbers: list[int]) -> list[int]:
        """Return those of some shards that are still there and fit together into one."""
        assert self._cache is not None
        room = min(JOINED_SHARD, self._cache.max_bytes // 4)
        chosen = []
        for number in sorted(numbers, key=lambda number: self._shards[number].embeddings.nbytes):
            shard = self._shards[number]
            room -= shard.embeddings.nbytes
            if room < 0:
                break
            if shard.file is not None and _exists(shard.file) and not shard.truncated:
                chosen.append(number)
        return sorted(chosen)

    def _join(self, numbers: list[int], folder: Path) -> None:
        """Write shards as one, then remove their files."""
        if len(numbers) < 2:
            return
        entries = self._index.entries_of(numbers)
        old = [self._shards[number] for number in numbers]
        joined: list[Shard] = []
        if len(entries):  # else other shards hold all their keys
            parts = [
                self._shards[number].embeddings[self._index.place[entries[self._index.shard[entries] == number]]]
                for number in numbers
            ]
            whole = Shard.of(np.ascontiguousarray(self._index.keys[:, entries].T), np.concatenate(parts))
            path = write_shard(whole, folder, self.fingerprint)
            self._known_files.add(path.name)
            joined.append(read_shard(path, self.fingerprint))
            self._used_now.add(path)
        self._keep([number not in numbers for number in range(len(self._shards))])
        self._add(joined)
        kept = {shard.file for shard in joined}
        for shard in old:
            if shard.file is not None and shard.file not in kept:
                _remove(shard.file)


def _folder_name(fingerprint: str) -> str:
    is_valid_name = re.fullmatch(r"[0-9A-Za-z_-]{1,64}", fingerprint)
    return fingerprint if is_valid_name else xxhash.xxh3_128_hexdigest(fingerprint.encode())


def _first_of_each(keys: Array) -> Array:
    """Return the first row of each distinct key (N, 2), ascending."""
    order = key_order(keys.T)
    repeats = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    return np.sort(np.delete(order, np.flatnonzero(repeats) + 1))


def _as_array(keys: Tensor) -> Array:
    array: Array = keys.detach().cpu().contiguous().numpy()
    if array.dtype != np.int64 or array.ndim != 2 or array.shape[1] != 2:
        raise DataError(f"keys must be (N, 2) int64 from content_keys; got {array.shape} {array.dtype}.")
    return array


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file for the block; raise OSError if another process holds it, or the folder cannot be written."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        yield
    finally:
        _remove(path)


def _remove(path: Path) -> bool:
    try:
        path.unlink()
    except OSError:
        return False
    return True


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # an unreachable network disk: assume that the file is still there
        return True


def _subfolders(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if path.is_dir()]
    except OSError:
        return []


def _listing(folder: Path, suffixes: tuple[str, ...]) -> list[tuple[Path, os.stat_result]]:
    """Return the files of a folder by name; none if it does not exist. Files may vanish while the folder is read."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.name.endswith(suffixes))
    except OSError:
        return []
    listed = []
    for path in paths:
        with contextlib.suppress(OSError):
            listed.append((path, path.stat()))
    return listed
