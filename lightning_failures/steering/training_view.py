"""Deterministic, ordered reading of a training set or a pool, with decision values and cache keys.

Every example is read once, in the order of the dataset, through transforms that do not vary, as a validation set is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset, default_collate
from tqdm import tqdm

from lightning_failures.core.budget import PROGRESS_DELAY
from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.data.digests import image_digests
from lightning_failures.data.grades import BatchRecord
from lightning_failures.directions.result import FailureDirections
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.steering.loader_patch import checked_loader, original_dataset
from lightning_failures.steering.readable import readable_batches
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.ranks import Communicator

VIEW = "train_analysis_dataset"
_WORKER_OPTIONS = ("num_workers", "multiprocessing_context", "worker_init_fn")
BATCH_SIZE = 256
FLUSH_EVERY = 64  # batches; embeddings are in memory until they are flushed
ROWS = 8192


@dataclass(frozen=True)
class Block:
    """Some b examples of one process.

    Attributes:
        ids: (b,) int64, dataset indices.
        labels: (b,) int64.
        values: (b,) float32, decision values by the direction of their class, NaN for a class without one.
        keys: (b, 2) int64, content keys.
        digests: (b,) int64, digests of the images of a pool; None for training images.
    """

    ids: Tensor
    labels: Tensor
    values: Tensor
    keys: Tensor
    digests: Tensor | None = None


@dataclass
class ExamplesView:
    """Reads every example once per run, and keeps its label and cache key, but not its image.

    Attributes:
        dataset: N examples, in the order of the training set or pool.
        collate: Makes batches of them.
        reader: Reads the batches.
        workers: Arguments of a DataLoader about workers, as in the training loader.
        seed: Seed of random transforms, so that they give the same image each time.
        what: Name of the examples in messages.
        digested: Whether digests of the images are kept too, and items that cannot be read are left out: for pools.
        left_out: Reason for each item of this process that was left out, by id.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    reader: BatchReader
    workers: Mapping[str, Any]
    seed: int
    what: str = "training images"
    digested: bool = False
    left_out: dict[int, str] = field(default_factory=dict, repr=False)
    _read: tuple[Tensor, Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    def looks_random(self) -> bool:
        """Return whether some of the first examples differ when they are read twice."""
        some = range(min(4, len(self)))
        first = self._images(some, self.seed)
        second = self._images(some, self.seed + 1)
        return first.shape != second.shape or not torch.equal(first, second)

    def judge(
        self, cached: CachedEncoder, directions: FailureDirections, ranks: Communicator, *, progress: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """Return labels (N,), decision values (N,) and keys (N, 2) of all examples, on every rank. Collective.

        Each rank embeds its share of the images that the cache lacks, a batch at a time.
        """
        blocks = ranks.gather_results(lambda: list(self.blocks(cached, directions, ranks, progress=progress)))
        all_labels = np.empty(len(self), dtype=np.int64)
        all_values = np.empty(len(self), dtype=np.float32)
        all_keys = np.empty((len(self), 2), dtype=np.int64)
        for block in itertools.chain.from_iterable(blocks):
            rows = block.ids.numpy()
            all_labels[rows], all_values[rows], all_keys[rows] = (
                part.numpy() for part in (block.labels, block.values, block.keys)
            )
        return all_labels, all_values, all_keys

    def blocks(
        self, cached: CachedEncoder, directions: FailureDirections, ranks: Communicator, *, progress: bool = False
    ) -> Iterator[Block]:
        """Yield the examples of this process with their decision values, some thousands at a time."""
        ids = torch.arange(ranks.rank, len(self), ranks.world_size)
        if not len(ids):
            return
        if self._read is None or any(
            bool(cached.store.missing(some).any()) for some in torch.split(self._read[2], ROWS)
        ):
            self._read = self._embed(ids, cached, progress=progress and ranks.is_first)
        ids, labels, keys, digests = self._read
        for start in range(0, len(ids), ROWS):
            rows = slice(start, start + ROWS)
            values = directions.decision_values(cached.look_up(keys[rows]), labels[rows])
            yield Block(ids[rows], labels[rows], values, keys[rows], digests[rows] if self.digested else None)

    def batches(self, ids: Sequence[int]) -> Iterator[BatchRecord]:
        """Read examples again as input of the model, with class labels."""
        for batch in self._batches(ids):
            record = self.reader.read(None, batch)
            yield replace(record, labels=None if record.labels is None else _class_labels(record.labels))

    def _embed(self, ids: Tensor, cached: CachedEncoder, *, progress: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embed the images that the cache lacks.

        Returns:
            Ids (n,), labels (n,), keys (n, 2) and digests (n,) or (0,) of the examples that could be read.
        """
        read_ids = [torch.empty(0, dtype=torch.int64)]
        labels, keys = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 2, dtype=torch.int64)]
        digests = [torch.empty(0, dtype=torch.int64)]
        space = self.reader.space(self.dataset)
        bar = tqdm(
            desc=f"FailureModes embeds {self.what}",
            total=len(ids),
            delay=PROGRESS_DELAY,
            leave=False,
            disable=not progress,
        )
        with bar:
            for number, (batch_ids, batch) in enumerate(self._readable(ids.tolist()), start=1):
                record = self.reader.read(None, batch)
                if record.images is None or record.labels is None:
                    raise DataError(f"Batches of {self.what} hold no images or no labels. Give read_batch.")
                found = content_keys(record.images, salt=repr(space))
                lacking = cached.store.missing(found)
                if lacking.any():
                    cached.embed(space.to_unit(record.images[lacking]), found[lacking])
                read_ids.append(torch.tensor(batch_ids))
                labels.append(_class_labels(record.labels))
                keys.append(found)
                if self.digested:
                    digests.append(image_digests(space.to_unit(record.images)))
                if number % FLUSH_EVERY == 0:
                    cached.store.flush()
                bar.update(len(found))
        cached.store.flush()
        return torch.cat(read_ids), torch.cat(labels), torch.cat(keys), torch.cat(digests)

    def _readable(self, ids: Sequence[int]) -> Iterator[tuple[Sequence[int], Any]]:
        """Yield ids and batches of all examples; of a pool those that can be read."""
        if not self.digested:
            parts = (ids[start : start + BATCH_SIZE] for start in range(0, len(ids), BATCH_SIZE))
            yield from zip(parts, self._batches(ids), strict=True)
            return
        self.left_out.clear()
        with isolated_rng():
            seed_all(self.seed)
            generator = torch.Generator().manual_seed(self.seed)
            yield from readable_batches(
                self.dataset,
                ids,
                self.collate,
                self.left_out,
                batch_size=BATCH_SIZE,
                generator=generator,
                **self.workers,
            )

    def _batches(self, ids: Sequence[int]) -> Iterator[Any]:
        with isolated_rng():
            seed_all(self.seed)
            yield from DataLoader(
                Subset(self.dataset, ids),
                batch_size=BATCH_SIZE,
                collate_fn=self.collate,
                **self.workers,
                generator=torch.Generator().manual_seed(self.seed),
            )

    def _images(self, ids: range, seed: int) -> Tensor:
        with isolated_rng():
            seed_all(seed)
            images = self.reader.read(None, self.collate([self.dataset[i] for i in ids])).images
        if images is None:
            raise DataError(f"Batches of {self.what} hold no images. Give read_batch.")
        return images


def training_view(trainer: Trainer, loader: object, reader: BatchReader, *, seed: int) -> ExamplesView:
    """Return the view of ``train_analysis_dataset`` of the datamodule or the module, else of the training set itself.

    Raises:
        ConfigurationError: The loader is not supported, or ``train_analysis_dataset`` has another length.
    """
    loader = checked_loader(loader)
    dataset: Any = original_dataset(loader)
    workers = {name: getattr(loader, name) for name in _WORKER_OPTIONS}
    for owner in (getattr(trainer, "datamodule", None), trainer.lightning_module):
        view = getattr(owner, VIEW, None)
        view = view() if callable(view) else view
        if view is None:
            continue
        if len(view) != len(dataset):
            raise ConfigurationError(
                f"{type(owner).__name__}.{VIEW} has {len(view)} examples, the training set"
                f" {len(dataset)}: it must hold the same examples in the same order."
            )
        return ExamplesView(view, default_collate, reader, workers, seed)
    return ExamplesView(dataset, loader.collate_fn, reader, workers, seed)


def pool_view(pool: Any, view: Any, training: ExamplesView, collate: Callable[[list[Any]], Any]) -> ExamplesView:
    """Return the view of a pool.

    Args:
        pool: The examples.
        view: The same examples through the transform of validation, or None.
        training: View of the training set, with the same reader, workers and seed.
        collate: Collate function of the training loader.
    """
    dataset, collate = (pool, collate) if view is None else (view, default_collate)
    return ExamplesView(
        dataset, collate, training.reader, training.workers, training.seed, "pool images", digested=True
    )


def _class_labels(labels: Tensor) -> Tensor:
    """Convert the labels of a batch, (B,), (B, 1) or one-hot (B, K), to classes (B,) int64, a copy."""
    labels = labels.detach().cpu()
    if labels.ndim == 2 and labels.shape[1] > 1:
        if not bool(((labels == 0) | (labels == 1)).all()) or not bool((labels.sum(1) == 1).all()):
            raise ConfigurationError(
                "Interventions need one class for each training example, but labels of shape"
                f" {tuple(labels.shape)} are not one-hot. Give the datamodule a {VIEW} with integer labels."
            )
        return labels.argmax(1)
    return labels.reshape(-1).long().clone()
