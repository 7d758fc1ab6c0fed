"""Read examples of a dataset by index, outside of the loop, through the same steps as the batches of the loop.

Everything that is read beside the batches of an evaluation comes through here: training sets, pools, the reference,
pictures, and the checks of doctor.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset

from lightning_failures.core.hashing import stable_hash
from lightning_failures.core.rng import isolated_rng, seed_all
from lightning_failures.data.grades import BatchRecord
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.batch_transfer import BatchTransfer
from lightning_failures.trainer.index_recorder import IndexRecorder, dataset_of
from lightning_failures.trainer.readable import Unreadable, common_form, read_example, tried

READ_AT_ONCE = 256
"""Number of examples that are read as one batch, unless they differ in size."""

MAX_REFERENCE = 20_000
"""Largest number of training examples that serve as the reference."""

WORKER_OPTIONS = ("num_workers", "multiprocessing_context", "worker_init_fn")
"""Arguments of a DataLoader about workers that reads outside of the loop take over from the user's loader."""

By = Literal["examples", "lists", "items"]


@dataclass(frozen=True)
class BatchForm:
    """How a loader makes a batch of examples.

    Attributes:
        collate: The loader's ``collate_fn``.
        by: "examples": from a list of examples; "lists": the dataset itself takes a list of indices
            (``batch_size=None`` with a BatchSampler); "items": an item of the dataset is a batch (``batch_size=None``).
    """

    collate: Callable[[Any], Any]
    by: By = "examples"

    @classmethod
    def of(cls, loader: Any) -> BatchForm:
        """Return the form of the batches of a DataLoader."""
        if loader.batch_sampler is not None:
            return cls(loader.collate_fn)
        sampler = loader.sampler
        while isinstance(sampler, IndexRecorder):
            sampler = sampler.wrapped
        return cls(loader.collate_fn, "lists" if isinstance(sampler, BatchSampler) else "items")

    def make(self, dataset: Any, ids: Sequence[int]) -> list[tuple[list[int], Any]]:
        """Return examples as batches, each with the ids in it: one batch, or one for each example.

        Examples that cannot be collated together, such as images of different sizes, are read singly.
        """
        if self.by == "items":
            return [([i], self.collate(dataset[i])) for i in ids]
        if self.by == "lists":
            return _together_or_singly(ids, lambda some: self.collate(dataset[list(some)]))
        get_many = getattr(dataset, "__getitems__", None)
        examples = [dataset[i] for i in ids] if get_many is None else get_many(list(ids))
        rows = dict(zip(ids, examples, strict=True))
        return _together_or_singly(ids, lambda some: self.collate([rows[i] for i in some]))


def _together_or_singly(ids: Sequence[int], make: Callable[[Sequence[int]], Any]) -> list[tuple[list[int], Any]]:
    try:
        return [(list(ids), make(ids))]
    except Exception:
        if len(ids) == 1:
            raise
        return [([i], make([i])) for i in ids]


@dataclass(frozen=True)
class ReadExamples:
    """A batch that was read outside of the loop.

    Attributes:
        ids: Dataset indices, in the order of the batch.
        batch: The batch as the step would receive it.
        record: What the batch holds.
    """

    ids: list[int]
    batch: Any
    record: BatchRecord


@dataclass(frozen=True)
class ExampleReader:
    """Reads examples by dataset index as the loop would: dataset, ``collate_fn``, transfer hooks, ``read_batch``.

    The global random generators are left as they were.

    Attributes:
        dataset: A map-style dataset.
        form: How its examples become a batch.
        reader: Reads the batch, with ``outputs=None``.
        transfer: Turns a batch of the loader into one of the step.
        workers: Arguments of a DataLoader about workers; by default the main process reads.
        what: Name of the examples in messages.
        left_out: Gets the reason, by index, for each example that cannot be read or that looks unlike the others. None:
            such an example is an error.
        alike: Whether an example of another form than most is left out too, because a training batch must hold it.
    """

    dataset: Any
    form: BatchForm
    reader: BatchReader
    transfer: Callable[[Any], Any]
    workers: dict[str, Any] = field(default_factory=dict)
    what: str = "the dataset"
    left_out: dict[int, str] | None = None
    alike: bool = True

    @classmethod
    def of_loader(cls, trainer: Trainer, loader: Any, index: int, reader: BatchReader) -> ExampleReader:
        """Return the reader of the examples of an evaluation loader, whose index is ``index``."""
        return cls(dataset_of(loader), BatchForm.of(loader), reader, BatchTransfer(trainer, index))

    def read(
        self, ids: Sequence[int], *, at_once: int = READ_AT_ONCE, seed: int | None = None, one_each: bool = True
    ) -> Iterator[ReadExamples]:
        """Yield examples in the order of ``ids``, at most ``at_once`` in a batch.

        Args:
            ids: Dataset indices.
            at_once: Largest number of examples in a batch.
            seed: Seed of random transforms and hooks; None: they go on from the state of the generators.
            one_each: Whether each example must give one image and one label.

        Raises:
            DataError: An example gives another number of images or labels.
        """
        chunks = [list(ids[start : start + at_once]) for start in range(0, len(ids), at_once)]
        with isolated_rng():
            if seed is not None:
                seed_all(seed)
            for parts in self._loaded(chunks):
                for some, batch in parts:
                    yield from self._recorded(some, batch, one_each=one_each)

    def images(self, ids: Sequence[int]) -> list[Tensor]:
        """Return the images (C, H, W) float32 in [0, 1], on the CPU, in the order of ``ids``; their sizes may differ.

        Raises:
            DataError: The examples hold no images, or values that do not fit the normalisation.
        """
        parts = [self.unit_images(part.record).cpu() for part in self.read(ids)]
        return list(itertools.chain.from_iterable(parts))

    def varies(self, ids: Sequence[int]) -> bool:
        """Return whether some images differ when they are read twice, because a transform or a hook is random.

        Raises:
            DataError: The examples hold no images.
        """
        first, second = (
            [self.images_of(part.record) for part in self.read(ids, seed=seed, one_each=False)] for seed in (0, 1)
        )
        same = [a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=False)]
        return len(first) != len(second) or not all(same)

    def images_of(self, record: BatchRecord) -> Tensor:
        """Return the images (B, C, H, W) of a batch that was read, as the step receives them.

        Raises:
            DataError: It holds no images.
        """
        if record.images is None:
            raise DataError(f"Batches of {self.what} hold no images. Give read_batch.")
        return record.images

    def unit_images(self, record: BatchRecord) -> Tensor:
        """Return the images (B, C, H, W) float32 in [0, 1] of a batch that was read.

        Raises:
            DataError: It holds no images, or values that do not fit the normalisation.
        """
        return self.reader.space(self.dataset).to_unit(self.images_of(record))

    def _loaded(self, chunks: list[list[int]]) -> Iterator[list[tuple[list[int], Any]]]:
        """Yield the batches of each chunk of ids, read by workers if there are any."""
        batches = Batches(self.dataset, self.form)
        if self.left_out is not None and self.form.by == "examples":
            batches = TolerantBatches(self.dataset, self.form, alike=self.alike)
        loaded: Iterable[list[tuple[list[int], Any]]] = (batches[chunk] for chunk in chunks)
        if self.workers.get("num_workers"):
            loaded = DataLoader(batches, batch_size=None, sampler=chunks, collate_fn=unchanged, **self.workers)
        for parts in loaded:
            if self.left_out is not None:
                self.left_out.update({ids[0]: part.reason for ids, part in parts if isinstance(part, Unreadable)})
            yield [(ids, part) for ids, part in parts if not isinstance(part, Unreadable)]

    def _recorded(self, ids: list[int], batch: Any, *, one_each: bool) -> Iterator[ReadExamples]:
        """Yield a batch with its record; a batch that lacks examples, or repeats some, is read again singly."""
        read = self._read(ids, batch)
        if isinstance(read, Unreadable):
            self._leave_out(ids[0], read.reason)
            return
        counts = {len(values) for values in (read.record.images, read.record.labels) if values is not None}
        if not one_each or counts <= {len(ids)}:
            yield read
        elif len(ids) > 1:
            for parts in self._loaded([[i] for i in ids]):
                for some, single in parts:
                    yield from self._recorded(some, single, one_each=True)
        elif self.left_out is not None:
            self._leave_out(ids[0], f"gives {_counted(counts)} instead of one")
        elif self.form.by == "items":
            raise DataError(
                f"Example {ids[0]} of {self.what} is a batch of its own (batch_size=None), so its images have no"
                " indices. Give the DataLoader a batch_size and a dataset of single examples."
            )
        else:
            raise DataError(
                f"Example {ids[0]} of {self.what} gives {_counted(counts)} instead of one: collate_fn, the batch"
                " hooks and read_batch must neither drop nor repeat examples."
            )

    def _read(self, ids: list[int], batch: Any) -> ReadExamples | Unreadable:
        """Return a batch as the step would receive it, with its record."""

        def work() -> ReadExamples:
            moved = self.transfer(batch)
            return ReadExamples(ids, moved, self.reader.read(None, moved, self.dataset))

        return work() if self.left_out is None else tried(ids, work)

    def _leave_out(self, index: int, reason: str) -> None:
        assert self.left_out is not None
        self.left_out[index] = reason


def _counted(counts: Iterable[int]) -> str:
    return f"{' and '.join(map(str, sorted(counts)))} images or labels"


class Batches(Dataset[Any]):
    """A dataset of batches: maps a list of ids to the batches that the user's loader would make of them."""

    def __init__(self, dataset: Any, form: BatchForm) -> None:
        self.dataset, self.form = dataset, form

    def __getitem__(self, ids: Sequence[int]) -> list[tuple[list[int], Any]]:
        return self.form.make(self.dataset, ids)


class TolerantBatches(Batches):
    """Batches of the examples that can be read; for each other one the reason stands alone.

    Args:
        dataset: A map-style dataset.
        form: How its examples become a batch.
        alike: Whether examples that do not have the form of most others count as unreadable too.
    """

    def __init__(self, dataset: Any, form: BatchForm, *, alike: bool) -> None:
        super().__init__(dataset, form)
        self.alike = alike

    @cached_property
    def common(self) -> Any:
        """The form of most examples; found where they are read, since a worker must not share an open file."""
        return common_form(self.dataset) if self.alike else None

    def __getitem__(self, ids: Sequence[int]) -> list[tuple[list[int], Any]]:
        rows = {i: read_example(self.dataset, i, self.common) for i in ids}
        unreadable = [i for i in ids if isinstance(rows[i], Unreadable)]
        kept = [i for i in ids if i not in set(unreadable)]
        parts: list[tuple[list[int], Any]] = [([i], rows[i]) for i in unreadable]
        if kept:
            parts += _together_or_singly(
                kept, lambda some: tried(some, lambda: self.form.collate([rows[i] for i in some]))
            )
        return parts


def unchanged(batch: Any) -> Any:
    """Return a batch that is already collated; a named function, because workers cannot unpickle a lambda."""
    return batch


@dataclass(frozen=True)
class TrainingSample:
    """Some examples of the training set, the same in every epoch and run.

    Attributes:
        loader: The training loader.
        ids: Dataset indices of the sample, ascending.
        total: Number of examples of the training set.
    """

    loader: DataLoader[Any]
    ids: list[int]
    total: int


def training_sample(trainer: Trainer, *, seed: int, limit: int = MAX_REFERENCE) -> TrainingSample:
    """Draw at most ``limit`` indices of the training set by their hash.

    Raises:
        ConfigurationError: The run has no training set that can be indexed.
    """
    loader = _training_loader(trainer)
    if loader is None:
        raise ConfigurationError(
            "FailureModes(reference='train') needs a single training DataLoader over a map-style dataset. Use"
            " reference='validation', or give the Trainer a datamodule."
        )
    total = len(loader.dataset)  # type: ignore[arg-type]
    order = np.argsort(stable_hash(np.arange(total), seed), kind="stable")
    return TrainingSample(loader, np.sort(order[:limit]).tolist(), total)


def _training_loader(trainer: Trainer) -> DataLoader[Any] | None:
    loaders = training_loaders(trainer)
    found = [] if loaders is None else CombinedLoader(loaders, "min_size").flattened
    if len(found) != 1 or not isinstance(found[0], DataLoader) or isinstance(found[0].dataset, IterableDataset):
        return None
    return found[0]


def training_loaders(trainer: Trainer) -> Any:
    """Return the training loaders of a Trainer, outside of ``fit`` new ones of its datamodule or module; or None."""
    loaders = trainer.train_dataloader
    if loaders is None:
        datamodule = getattr(trainer, "datamodule", None)
        source = trainer.lightning_module if datamodule is None else datamodule
        if is_overridden("train_dataloader", source):
            if datamodule is not None:
                datamodule.setup("fit")
            loaders = source.train_dataloader()
    return loaders
