"""What one process does for a pool: from a batch to rows, from rows to a shard on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_failures.directions.result import FailureDirections
from lightning_failures.encoders import Encoder
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.errors import ConfigurationError, DataError, EncoderError
from lightning_failures.pools.fitted import FittedDirections
from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.shards import POOL_UNLABELLED, PoolShard, in_half, scored, write_pool_shard
from lightning_failures.pools.source import PoolSource
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.image_space import ImageSpace


@dataclass(frozen=True)
class PoolJob:
    """What is done with a pool.

    Attributes:
        source: The pool.
        encoder: What the user named, or an encoder.
        reader: Reads batches.
        folder: Where shards and results go. All processes must see the same.
        fitted: Score with these directions; None: only embed.
        k: How many of the hardest examples of each class to find.
        class_names: The user's, or None to read ``dataset.classes``.
        task: The user's, or None.
        device: Of the encoder; None: that of the process.
        shard_size: None: as begun, or chosen by the size of the pool.
        keep_embeddings: Whether shards hold them.
    """

    source: PoolSource
    encoder: str | Path | Encoder
    reader: BatchReader
    folder: Path
    fitted: FittedDirections | None = None
    k: int = 100
    class_names: Sequence[str] | None = None
    task: str | None = None
    device: str | torch.device | None = None
    shard_size: int | None = None
    keep_embeddings: bool = True

    @property
    def directions(self) -> FailureDirections | None:
        """What is scored with."""
        return None if self.fitted is None else self.fitted.directions


@dataclass
class ShardWriter:
    """What one process does with its batches: at most the rows of one shard are held.

    Attributes:
        job: What is done.
        manifest: Of the pool.
        encoder: Already loaded.
        space: Of the images.
        batches: The ids of each batch to come.
    """

    job: PoolJob
    manifest: PoolManifest
    encoder: Encoder
    space: ImageSpace
    batches: Iterator[range]

    def __post_init__(self) -> None:
        self._rows: list[PoolShard] = []

    def take(self, batch: Any) -> int:
        """Embed the next batch, and write its shard if it is complete; return the number of examples."""
        ids = next(self.batches)  # a loader yields in the order of its sampler
        self._rows.append(self._embed(batch, ids))
        number = ids.start // self.manifest.shard_size
        if ids.stop == self.manifest.block(number).stop:
            self._write(number)
        return len(ids)

    def _embed(self, batch: Any, ids: range) -> PoolShard:
        record = self.job.reader.read(None, batch)
        images, labels = record.images, record.labels
        if images is None:
            raise DataError(
                f"No images were found in a batch of type {type(batch).__name__}. Batches are (x, y, ...) or mappings"
                " with keys such as image and label; for other forms give the callback read_batch."
            )
        if labels is None and self.job.directions is not None:
            raise DataError(
                "Scoring needs the label of each example, and none were found in a batch of type"
                f" {type(batch).__name__}. Give the callback read_batch, or leave --directions away to embed only."
            )
        for name, rows in (("images", images), ("labels", labels)):
            if rows is not None and len(rows) != len(ids):
                raise DataError(
                    f"A batch of the {len(ids)} examples {ids.start} ... {ids.stop - 1} has {len(rows)} {name}."
                    " The collate_fn must neither drop nor repeat any."
                )
        embeddings = self.encoder.encode_images(self.space.to_unit(images)).detach().to("cpu", torch.float32)
        if embeddings.ndim != 2 or len(embeddings) != len(ids) or not bool(embeddings.isfinite().all()):
            raise EncoderError(
                f"The encoder must give {len(ids)} finite vectors for the examples {ids.start} ... {ids.stop - 1};"
                f" it gave {tuple(embeddings.shape)}."
            )
        return PoolShard(
            ids=torch.arange(ids.start, ids.stop),
            labels=torch.full((len(ids),), POOL_UNLABELLED) if labels is None else _one_label(labels, self.job.task),
            keys=content_keys(images, salt=repr(self.space)),
            embeddings=embeddings,
        )

    def _write(self, number: int) -> None:
        rows, self._rows = self._rows, []
        ids, labels, keys = (torch.cat([getattr(r, name) for r in rows]) for name in ("ids", "labels", "keys"))
        embeddings = torch.cat([r.embeddings for r in rows if r.embeddings is not None])
        shard = PoolShard(ids, labels, keys, in_half(embeddings))
        if self.job.directions is not None:
            shard = scored(shard, self.job.directions)
        if not self.job.keep_embeddings:
            shard = replace(shard, embeddings=None)
        with writing(self.job.folder):
            write_pool_shard(shard, self.manifest.path(self.job.folder, number), pool=self.manifest.digest)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a full disk, and the like, into an error that tells how to go on."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"embed --output {folder} cannot be written ({error}). What is done stays: when there is room, the same"
            " command does the rest."
        ) from error


def _one_label(labels: Tensor, task: str | None) -> Tensor:
    """(B,) int64 from labels (B,), (B, 1), or one-hot (B, K)."""
    labels = labels.detach().cpu()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and task == "multiclass":
        labels = labels.argmax(1)
    if labels.ndim != 1 or not torch.equal(labels.long().to(labels.dtype), labels) or int(labels.min()) < 0:
        raise DataError(
            f"A pool has one class for each example; labels of the shape {tuple(labels.shape)} came. For one-hot labels"
            " give the callback task='multiclass'; pools of multilabel tasks are not supported."
        )
    return labels.long().clone()
