"""The user's loader, cut into blocks of consecutive examples that are divided among processes.

Lightning's sampler for prediction gives every process every n-th example, keeps a list of all indices in each process,
records each index drawn, and fails an assertion if there are fewer examples than processes. Blocks of ids can be
redone one by one, whatever the number of processes, and memory does not grow with the pool.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.example_reader import BatchForm, TolerantBatches, unchanged

PoolSplit = Literal["predict", "train", "validation", "test"]

_LOADERS = {
    "predict": "predict_dataloader",
    "train": "train_dataloader",
    "validation": "val_dataloader",
    "test": "test_dataloader",
}
_STAGES = {"predict": "predict", "train": "fit", "validation": "validate", "test": "test"}


@dataclass(frozen=True)
class PoolSource:
    """The origin of a pool: a datamodule, or a module with its own loaders.

    Attributes:
        module: The user's module. Only its hooks are used; it is not moved to another device.
        datamodule: The user's datamodule, or None.
        split: The split whose loader yields the pool.
    """

    module: LightningModule
    datamodule: LightningDataModule | None = None
    split: PoolSplit = "predict"

    @property
    def owner(self) -> LightningModule | LightningDataModule:
        """The object that has the loaders."""
        return self.module if self.datamodule is None else self.datamodule

    def check(self) -> None:
        """Check that the split has a loader, before anything is started.

        Raises:
            ConfigurationError: It has none.
        """
        hook = _LOADERS[self.split]
        if not is_overridden(hook, self.owner):
            others = [split for split, name in _LOADERS.items() if is_overridden(name, self.owner)]
            raise ConfigurationError(
                f"`embed` reads the pool from {hook}, which {type(self.owner).__name__} does not have. Add it"
                + (f", or choose another split: --split {'|'.join(others)}." if others else ".")
            )

    def begin(self, trainer: Trainer) -> None:
        """Call ``setup``, in every process."""
        self.module.trainer = trainer
        if self.datamodule is not None:
            self.datamodule.trainer = trainer
        self.owner.setup(_STAGES[self.split])

    def end(self) -> None:
        """Call ``teardown``, in every process."""
        self.owner.teardown(_STAGES[self.split])

    def loader(self) -> DataLoader[Any]:
        """Return the user's loader.

        Raises:
            ConfigurationError: The loader cannot be cut into blocks.
        """
        return whole_loader(getattr(self.owner, _LOADERS[self.split])(), _LOADERS[self.split])

    def hook(self, name: str) -> Callable[..., Any]:
        """Return a batch hook as Lightning would: the datamodule's if it overrides the hook, else the module's."""
        from_datamodule = self.datamodule is not None and is_overridden(name, self.datamodule)
        hook: Callable[..., Any] = getattr(self.datamodule if from_datamodule else self.module, name)
        return hook


class BlockSampler(DistributedSampler[range]):
    """Yields the batches of this process, each as the ``range`` of its ids. No batch crosses the end of a block.

    It derives from DistributedSampler so that Lightning does not replace it.

    >>> list(BlockSampler([range(0, 5), range(10, 12)], batch_size=3))
    [range(0, 3), range(3, 5), range(10, 12)]
    """

    def __init__(self, blocks: Sequence[range], *, batch_size: int) -> None:
        super().__init__(blocks, num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self.blocks, self.batch_size = blocks, batch_size

    def __iter__(self) -> Iterator[range]:
        for block in self.blocks:
            for start in range(block.start, block.stop, self.batch_size):
                yield range(start, min(start + self.batch_size, block.stop))

    def __len__(self) -> int:
        return sum(-(-len(block) // self.batch_size) for block in self.blocks)


def whole_loader(loaders: Any, hook: str) -> DataLoader[Any]:
    """Return the single DataLoader of a hook, after checking that its examples can be fetched by index.

    Args:
        loaders: What the hook returned.
        hook: Name of the hook, for messages.

    Raises:
        ConfigurationError: There is not exactly one loader, or its examples cannot be fetched by index.
    """
    flat = [] if loaders is None else CombinedLoader(loaders, "sequential").flattened
    if len(flat) != 1 or not isinstance(flat[0], DataLoader):
        raise ConfigurationError(
            f"`embed` needs one DataLoader from {hook}; got {len(flat)} in a {type(loaders).__name__}."
            " Join datasets with torch.utils.data.ConcatDataset."
        )
    loader: DataLoader[Any] = flat[0]
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise ConfigurationError(
            f"`embed` divides and resumes a pool by the indices of its examples, which a"
            f" {type(loader.dataset).__name__} does not have. Let {hook} use a dataset with __getitem__ and __len__."
        )
    sampler = loader.sampler if loader.batch_sampler is None else getattr(loader.batch_sampler, "sampler", None)
    if not isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler):
        given = type(loader.batch_sampler if sampler is None else sampler).__name__
        raise ConfigurationError(
            f"`embed` reads every example of the dataset and ignores what a {given} draws. To embed a part of it, let"
            f" {hook} use a torch.utils.data.Subset without the sampler."
        )
    if not len(loader.dataset):
        raise ConfigurationError(f"The pool from {hook} has no examples.")
    if not batch_size_of(loader):
        raise ConfigurationError(
            f"`embed` forms the batches of {hook} itself. Give the DataLoader a batch_size and a dataset of single"
            " examples."
        )
    return loader


def blocks_loader(loader: DataLoader[Any], blocks: Sequence[range]) -> DataLoader[Any]:
    """Return a loader of some blocks, with the workers and ``collate_fn`` of the user's loader.

    It yields lists of (ids, batch): one batch, or one for each example if they cannot be collated together. An example
    that cannot be read has an :class:`~lightning_failures.trainer.readable.Unreadable` instead of a batch.
    """
    options: dict[str, Any] = {}
    if loader.num_workers:
        options = {"prefetch_factor": loader.prefetch_factor, "multiprocessing_context": loader.multiprocessing_context}
    return DataLoader(
        TolerantBatches(loader.dataset, BatchForm.of(loader), alike=False),
        batch_size=None,  # an item is a batch
        sampler=BlockSampler(blocks, batch_size=batch_size_of(loader)),
        collate_fn=unchanged,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        **options,
    )


def path_in(dataset: Any, index: int) -> str | None:
    """Return the file of an example, or None if the dataset does not list it; sees through Subset and ConcatDataset.

    >>> class Folder:
    ...     samples = [("cats/1.png", 0), ("dogs/1.png", 1)]
    >>> from torch.utils.data import Subset
    >>> path_in(Subset(Folder(), [1]), 0), path_in([], 0)
    ('dogs/1.png', None)
    """
    samples = getattr(dataset, "samples", None)  # of torchvision's folders
    if isinstance(samples, Sequence) and index < len(samples):
        sample = samples[index]
        first = sample[0] if isinstance(sample, tuple | list) and sample else sample
        return str(first) if isinstance(first, str) or hasattr(first, "__fspath__") else None
    parts, ends = getattr(dataset, "datasets", None), getattr(dataset, "cumulative_sizes", None)
    if parts is not None and ends is not None:
        part = bisect_right(ends, index)
        return path_in(parts[part], index - (ends[part - 1] if part else 0))
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    return None if inner is None or indices is None else path_in(inner, int(indices[index]))


def batch_size_of(loader: DataLoader[Any]) -> int:
    """Return the number of examples in a batch; 0 if the loader does not form batches."""
    return int(loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 0)
