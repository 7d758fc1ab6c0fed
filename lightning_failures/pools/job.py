"""The work of one process: from batches to rows, from rows to shards on disk."""

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
from lightning_failures.pools.shards import POOL_UNLABELLED, PoolShard, round_to_half, score_shard, write_pool_shard
from lightning_failures.pools.source import PoolSource
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.image_space import ImageSpace


@dataclass(frozen=True)
class PoolJob:
    """What to do with a pool.

    Attributes:
        source: The pool.
        encoder: An encoder, or its name.
        reader: Reads batches.
        folder: Folder of shards and results, shared by all processes.
        fitted: Directions to score with; None: only embed.
        k: Number of hardest examples to find for each class.
        class_names: Class names given by the user; None: read ``dataset.classes``.
        task: Task given by the user, or None.
        device: Device of the encoder; None: that of the process.
        shard_size: Examples in a shard; None: that of an existing manifest, else chosen by the size of the pool.
        keep_embeddings: Whether shards hold the embeddings.
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
        """The directions to score with, or None."""
        return None if self.fitted is None else self.fitted.directions


@dataclass
class ShardWriter:
    """Embeds the batches of one process and writes shards; holds the rows of at most one shard.

    Attributes:
        job: What to do.
        manifest: Manifest of the pool.
        encoder: The loaded encoder.
        space: Undoes the normalisation of images.
        batches: The ids of each remaining batch.
    """

    job: PoolJob
    manifest: PoolManifest
    encoder: Encoder
    space: ImageSpace
    batches: Iterator[range]

    def __post_init__(self) -> None:
        self._rows: list[PoolShard] = []

    def take(self, parts: Sequence[tuple[Sequence[int], Any]]) -> int:
        """Embed the next examples, write their shard if that is complete, and return the number of examples.

        Args:
            parts: Consecutive ids and the batch that holds them; several if they cannot be collated together.
        """
        ids = next(self.batches)  # a loader yields in the order of its sampler
        self._rows += [self._embed(batch, range(some[0], some[-1] + 1)) for some, batch in parts]
        number = ids.start // self.manifest.shard_size
        if ids.stop == self.manifest.block(number).stop:
            self._write(number)
        return len(ids)

    def _embed(self, batch: Any, ids: range) -> PoolShard:
        """Return the rows of a batch.

        Raises:
            DataError: The batch has no images, or no labels although they are needed, or another number of them.
            EncoderError: The encoder does not return one finite vector for each image.
        """
        record = self.job.reader.read(None, batch)
        images, labels = record.images, record.labels
        if images is None:
            raise DataError(
                f"Found no images in a batch of type {type(batch).__name__}. Batches must be (x, y, ...) or mappings"
                " with keys such as image and label; for other forms, set read_batch of the callback."
            )
        if labels is None and self.job.directions is not None:
            raise DataError(
                "Scoring needs the label of each example, but a batch of type"
                f" {type(batch).__name__} has none. Set read_batch of the callback, or omit --directions to embed only."
            )
        for name, rows in (("images", images), ("labels", labels)):
            if rows is not None and len(rows) != len(ids):
                raise DataError(
                    f"The batch of the {len(ids)} examples {ids.start} ... {ids.stop - 1} has {len(rows)} {name}."
                    " The collate_fn must neither drop nor repeat examples."
                )
        embeddings = self.encoder.encode_images(self.space.to_unit(images)).detach().to("cpu", torch.float32)
        if embeddings.ndim != 2 or len(embeddings) != len(ids) or not bool(embeddings.isfinite().all()):
            raise EncoderError(
                f"The encoder must return {len(ids)} finite vectors for the examples {ids.start} ... {ids.stop - 1};"
                f" it returned {tuple(embeddings.shape)}."
            )
        return PoolShard(
            ids=torch.arange(ids.start, ids.stop),
            labels=torch.full((len(ids),), POOL_UNLABELLED) if labels is None else _class_labels(labels, self.job.task),
            keys=content_keys(images, salt=repr(self.space)),
            embeddings=embeddings,
        )

    def _write(self, number: int) -> None:
        """Write the collected rows as a shard."""
        rows = self._rows
        self._rows = []
        embeddings = torch.cat([part.embeddings for part in rows if part.embeddings is not None])
        shard = PoolShard(
            ids=torch.cat([part.ids for part in rows]),
            labels=torch.cat([part.labels for part in rows]),
            keys=torch.cat([part.keys for part in rows]),
            embeddings=round_to_half(embeddings),
        )
        if self.job.directions is not None:
            shard = score_shard(shard, self.job.directions)
        if not self.job.keep_embeddings:
            shard = replace(shard, embeddings=None)
        with writing(self.job.folder):
            write_pool_shard(shard, self.manifest.path(self.job.folder, number), pool=self.manifest.digest)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn a failed write, for instance on a full disk, into an error that says how to resume."""
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"embed --output {folder} cannot be written ({error}). Finished shards are kept; free some space and run"
            " the same command again to resume."
        ) from error


def _class_labels(labels: Tensor, task: str | None) -> Tensor:
    """Return (B,) int64 from labels (B,), (B, 1), or one-hot (B, K).

    Raises:
        DataError: Labels of another shape, fractional or negative labels.
    """
    labels = labels.detach().cpu()
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and task == "multiclass":
        labels = labels.argmax(1)
    if labels.ndim != 1 or not torch.equal(labels.long().to(labels.dtype), labels) or int(labels.min()) < 0:
        raise DataError(
            f"A pool needs one class for each example; got labels of shape {tuple(labels.shape)}. For one-hot labels"
            " set task='multiclass' of the callback; pools of multilabel tasks are not supported."
        )
    return labels.long().clone()
