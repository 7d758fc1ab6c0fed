"""The work of one process: from batches to rows, from rows to shards on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lightning_failures.core.arrays import finite_rows
from lightning_failures.directions.result import FailureDirections
from lightning_failures.encoders import Encoder
from lightning_failures.encoders.tolerant import MAX_FAILURES, TolerantEncoder
from lightning_failures.errors import ConfigurationError, EncoderError
from lightning_failures.pools.fitted import FittedDirections
from lightning_failures.pools.manifest import PoolManifest
from lightning_failures.pools.rows import usable_rows
from lightning_failures.pools.shards import PoolShard, round_to_half, score_shard, write_pool_shard
from lightning_failures.pools.source import PoolSource
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.readable import Unreadable, tried


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
        shop: Number of images to select for labelling, for each class with a pattern; None: no shopping list.
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
    shop: int | None = None

    @property
    def directions(self) -> FailureDirections | None:
        """The directions to score with, or None."""
        return None if self.fitted is None else self.fitted.directions


@dataclass
class ShardWriter:
    """Embeds the batches of one process and writes shards; holds the rows of one shard, rarely of a few.

    An example that cannot be embedded is left out of its shard, which keeps the reason. A shard at whose end the
    encoder fails image after image is not written before the encoder has embedded another image: an encoder that has
    broken down must leave nothing out.

    Attributes:
        job: What to do.
        manifest: Manifest of the pool.
        encoder: The loaded encoder.
        dataset: Dataset of the pool.
        channels: Number of channels that an image must have; None: any.
        batches: The ids of each remaining batch.
    """

    job: PoolJob
    manifest: PoolManifest
    encoder: Encoder
    dataset: Any
    channels: int | None
    batches: Iterator[range]

    def __post_init__(self) -> None:
        self._space = self.job.reader.space(self.dataset)
        self._encoder = TolerantEncoder(self.encoder)
        self._rows: list[PoolShard] = []
        self._left_out: dict[int, str] = {}
        self._waiting: list[tuple[int, PoolShard]] = []
        self._failures_in_a_row = 0

    def take(self, parts: Sequence[tuple[Sequence[int], Any]]) -> int:
        """Embed the next examples, write their shard if that is complete, and return the number of examples.

        Args:
            parts: Ids and the batch that holds them, or why the only one is unreadable; several if examples cannot be
                collated together.
        """
        ids = next(self.batches)  # a loader yields in the order of its sampler
        for some, batch in parts:
            if isinstance(batch, Unreadable):
                self._left_out[some[0]] = batch.reason
            else:
                self._embed(batch, some)
        number = ids.start // self.manifest.shard_size
        if ids.stop == self.manifest.block(number).stop:
            self._waiting.append((number, self._complete()))
            if not self._failures_in_a_row:
                self.finish()
        return len(ids)

    def finish(self) -> None:
        """Write the complete shards that wait for the encoder to embed another image."""
        for number, shard in self._waiting:
            with writing(self.job.folder):
                write_pool_shard(shard, self.manifest.path(self.job.folder, number), pool=self.manifest.digest)
        self._waiting = []

    def _embed(self, batch: Any, ids: Sequence[int]) -> None:
        """Collect the rows of a batch.

        Raises:
            DataError: A batch of several examples has no images, or another number of images or labels.
            EncoderError: The encoder returns embeddings of another form, or none for many images in a row.
        """
        record = tried(ids, lambda: self.job.reader.read(None, batch, self.dataset))
        if isinstance(record, Unreadable):
            self._left_out[ids[0]] = record.reason
            return
        usable = usable_rows(record, ids, self._space, task=self.job.task, channels=self.channels)
        self._left_out |= usable.left_out
        if not usable.ids:
            return
        self._encoder.last_error = None
        embeddings = self._encoder.encode(usable.images).detach().to("cpu", torch.float32)
        if embeddings.ndim != 2 or len(embeddings) != len(usable.ids):
            raise EncoderError(
                f"The encoder must return {len(usable.ids)} vectors for the examples {ids[0]} ... {ids[-1]}; it"
                f" returned {tuple(embeddings.shape)}."
            )
        if embeddings.shape[1] != self.encoder.dim:  # such as those of grey images
            self._encoder.last_error = f"{embeddings.shape[1]} numbers instead of {self.encoder.dim}"
            embeddings = torch.full((len(usable.ids), self.encoder.dim), torch.nan)
        embedded = finite_rows(embeddings)
        for i, is_embedded in zip(usable.ids, embedded.tolist(), strict=True):
            self._note(i, is_embedded=is_embedded)
        self._rows.append(
            PoolShard(
                ids=torch.tensor(usable.ids)[embedded],
                labels=usable.labels[embedded],
                keys=usable.keys[embedded],
                embeddings=embeddings[embedded],
            )
        )

    def _note(self, example: int, *, is_embedded: bool) -> None:
        """Note whether the encoder has embedded an example."""
        if is_embedded:
            self.finish()
            self._failures_in_a_row = 0
            return
        self._left_out[example] = self._encoder.problem
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES:
            raise EncoderError(
                f"The encoder {self.encoder.name} gave no finite embedding for {MAX_FAILURES} images in a row, the last"
                f" of which is example {example}. Finished shards are kept; the same command resumes."
            )

    def _complete(self) -> PoolShard:
        """Return the collected rows as a shard."""
        rows, left_out = self._rows, self._left_out
        self._rows, self._left_out = [], {}
        none = torch.empty(0, dtype=torch.int64)
        rows.insert(0, PoolShard(none, none, none.reshape(0, 2), torch.empty(0, self.encoder.dim)))
        embeddings = torch.cat([part.embeddings for part in rows if part.embeddings is not None])
        shard = PoolShard(
            ids=torch.cat([part.ids for part in rows]),
            labels=torch.cat([part.labels for part in rows]),
            keys=torch.cat([part.keys for part in rows]),
            embeddings=round_to_half(embeddings),
            left_out=left_out,
        )
        if self.job.directions is not None:
            shard = score_shard(shard, self.job.directions)
        return shard if self.job.keep_embeddings else replace(shard, embeddings=None)


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
