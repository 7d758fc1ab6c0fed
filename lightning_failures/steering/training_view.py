"""Deterministic, ordered reading of a training set or a pool, with decision values and cache keys.

Every example is read once, in the order of the dataset, through transforms that do not vary, as a validation set is.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lightning_failures.core.budget import PROGRESS_DELAY
from lightning_failures.directions.result import FailureDirections
from lightning_failures.encoders.cache.store import content_keys
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.interventions.base import LEFT_OUT
from lightning_failures.steering.loader_patch import checked_loader, original_dataset
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.example_names import digests_in
from lightning_failures.trainer.example_reader import ExampleReader, ReadExamples
from lightning_failures.trainer.image_space import ImageRangeError, pixel_problems
from lightning_failures.trainer.penultimate import PenultimateFeatures, penultimate_features
from lightning_failures.trainer.ranks import Communicator
from lightning_failures.trainer.reading_ways import VIEW, Fitness, Trial, best_trial, class_labels, training_ways
from lightning_failures.trainer.step_logits import StepLogits

MODEL_BATCH = 32  # examples that the model is shown at once, if the training loader does not say
FLUSH_EVERY = 16_384  # examples; embeddings are in memory until they are flushed
ROWS = 8192


@dataclass(frozen=True)
class Block:
    """Some b examples of one process.

    Attributes:
        ids: (b,) int64, dataset indices.
        labels: (b,) int64; ``LEFT_OUT`` for an example whose image has no embedding.
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
        ways: How the N examples, in the order of the training set or pool, may be read; the best way is chosen by
            reading some of them.
        seed: Seed of random transforms, so that they give the same image each time.
        batch_size: Number of examples that the model is shown at once.
        one_group: Whether all examples are one group, because those of the validation set have no labels.
        digested: Whether digests of the images are kept too.
        read_labels: Reads the labels of a batch.
    """

    ways: Sequence[ExampleReader]
    seed: int
    batch_size: int
    one_group: bool = False
    digested: bool = False
    read_labels: Callable[[Tensor], Tensor] = class_labels
    # ids, labels, keys, digests, and which have no embedding
    _read: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def dataset(self) -> Any:
        """The training set or pool, or the same examples through the transform of validation."""
        return self.ways[0].dataset

    @property
    def what(self) -> str:
        """Name of the examples in messages."""
        return self.ways[0].what

    @property
    def reader(self) -> ExampleReader:
        """The first way that reads images and classes as a validation does, else the one that comes nearest to it."""
        return self._trial.way

    @property
    def left_out(self) -> dict[int, str]:
        """Why items of a pool, of this process, were left out, by id: they cannot be read or embedded."""
        return self.reader.left_out or {}

    @property
    def doubt(self) -> str | None:
        """Why the normalisation cannot be that of the images, or None."""
        return self._trial.doubt

    @property
    def looks_random(self) -> bool:
        """Whether some of the examples differ when they are read twice."""
        return self._trial.fitness == Fitness.RANDOM

    @cached_property
    def _trial(self) -> Trial:
        return best_trial(self.ways, seed=self.seed, read_labels=self.read_labels)

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
        if self._read is None or bool((_missing(cached, self._read[2]) & ~self._read[4]).any()):
            ids, labels, keys, digests = self._embed(ids, cached, progress=progress and ranks.is_first)
            failed = _missing(cached, keys)
            self._read = ids, labels.masked_fill(failed, LEFT_OUT), keys, digests, failed
        ids, labels, keys, digests, _ = self._read
        for start in range(0, len(ids), ROWS):
            rows = slice(start, start + ROWS)
            values = directions.decision_values(cached.look_up_known(keys[rows]), labels[rows])
            yield Block(ids[rows], labels[rows], values, keys[rows], digests[rows] if self.digested else None)

    def model_batches(self, ids: Sequence[int]) -> Iterator[ReadExamples]:
        """Read examples again for the model, in batches that it can take, with their labels."""
        for part in self.reader.read(ids, at_once=self.batch_size, seed=self.seed):
            labels = part.record.labels
            record = replace(part.record, labels=None if labels is None else self.read_labels(labels))
            yield replace(part, record=record)

    def _embed(self, ids: Tensor, cached: CachedEncoder, *, progress: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embed the images that the cache lacks.

        Returns:
            Ids (n,), labels (n,), keys (n, 2) and digests (n,) or (0,) of the examples that could be read.
        """
        read_ids = [torch.empty(0, dtype=torch.int64)]
        labels, keys = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, 2, dtype=torch.int64)]
        digests = [torch.empty(0, dtype=torch.int64)]
        space = self.reader.reader.space(self.dataset)
        bar = tqdm(
            desc=f"FailureModes embeds {self.what}",
            total=len(ids),
            delay=PROGRESS_DELAY,
            leave=False,
            disable=not progress,
        )
        unflushed = n_failed = 0
        range_error: ImageRangeError | None = None
        with bar:
            for part in self.reader.read(ids.tolist(), seed=self.seed):
                images = self.reader.images_of(part.record)
                given = torch.zeros(len(images), dtype=torch.int64) if self.one_group else part.record.labels
                if given is None:
                    raise DataError(f"Batches of {self.what} hold no labels. Give read_batch.")
                found = content_keys(images, salt=repr(space))
                lacking = cached.store.missing(found)
                if lacking.any():
                    # of the whole batch, which shows which ones are odd
                    unit_images, error = space.to_unit_each(images)
                    range_error = range_error or error
                    cached.embed(unit_images[lacking.to(images.device)], found[lacking])
                    failed = cached.store.missing(found).nonzero().flatten().tolist()
                    n_failed += len(failed)
                    if self.reader.left_out is not None:
                        problems = pixel_problems(images, unit_images)
                        self.reader.left_out.update(
                            {part.ids[row]: problems.get(row, cached.problem) for row in failed}
                        )
                read_ids.append(torch.tensor(part.ids))
                labels.append(class_labels(given))
                keys.append(found)
                if self.digested:
                    digests.append(digests_in(images, space))
                unflushed += len(found)
                if unflushed >= FLUSH_EVERY:
                    cached.store.flush()
                    unflushed = 0
                bar.update(len(found))
        cached.store.flush()
        if range_error is not None and 2 * n_failed > len(ids):
            raise range_error
        return torch.cat(read_ids), torch.cat(labels), torch.cat(keys), torch.cat(digests)


def training_view(
    trainer: Trainer,
    loader: object,
    reader: BatchReader,
    *,
    seed: int,
    read_labels: Callable[[Tensor], Tensor] = class_labels,
) -> ExamplesView:
    """Return the view of ``train_analysis_dataset`` of the datamodule or the module, else of the training set itself.

    Raises:
        ConfigurationError: The loader is not supported, or ``train_analysis_dataset`` has another length.
    """
    loader = checked_loader(loader)
    training_set: Any = original_dataset(loader)
    dataset = training_set
    for owner in (getattr(trainer, "datamodule", None), trainer.lightning_module):
        view = getattr(owner, VIEW, None)
        view = view() if callable(view) else view
        if view is None:
            continue
        if len(view) != len(training_set):
            raise ConfigurationError(
                f"{type(owner).__name__}.{VIEW} has {len(view)} examples, the training set"
                f" {len(training_set)}: it must hold the same examples in the same order."
            )
        dataset = view
        break
    ways = training_ways(trainer, loader, dataset, reader)
    return ExamplesView(ways, seed, loader.batch_size or MODEL_BATCH, read_labels=read_labels)


def pool_view(pool: Any, view: Any, training: ExamplesView) -> ExamplesView:
    """Return the view of a pool.

    Args:
        pool: The examples.
        view: The same examples through the transform of validation, or None.
        training: View of the training set, with the same ways of reading, workers and seed.
    """
    dataset = pool if view is None else view
    ways = [replace(way, dataset=dataset, what="pool images", left_out={}) for way in training.ways]
    return ExamplesView(ways, training.seed, training.batch_size, training.one_group, digested=True)


def _missing(cached: CachedEncoder, keys: Tensor) -> Tensor:
    """Return which keys (n, 2) have no embedding, (n,) bool, some thousands at a time."""
    return torch.cat([cached.store.missing(some) for some in torch.split(keys, ROWS)])


def training_features(
    trainer: Trainer, module: LightningModule, reader: BatchReader, ranks: Communicator, *, head: str | None, seed: int
) -> PenultimateFeatures:
    """Return the penultimate features of this rank's share of the training set, by a pass in eval mode.

    Raises:
        ConfigurationError: The training loader is not supported, or the head cannot be found.
    """
    view = training_view(trainer, trainer.train_dataloader, reader, seed=seed)
    ids = range(ranks.rank, len(view), ranks.world_size)
    with StepLogits(trainer, reader, dataset=view.reader.dataset).open() as logits_of:
        batches = ((torch.tensor(part.ids), part.batch) for part in view.model_batches(ids))
        return penultimate_features(module, batches, head=head, trainer=trainer, logits_of=logits_of)
