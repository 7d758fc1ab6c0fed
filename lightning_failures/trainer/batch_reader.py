"""Reading batches in the user's form, and single examples off a dataset outside of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_failures.core.hashing import stable_hash
from lightning_failures.data.grades import BatchRecord
from lightning_failures.data.grading import read_default_batch
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.image_space import ImageSpace, find_normalization

AT_ONCE = 256
MAX_REFERENCE = 20_000


@dataclass(frozen=True)
class BatchReader:
    """How this user's batches are read.

    Attributes:
        own: The user's ``(outputs, batch) -> BatchRecord``, or None.
        normalization: The user's ``(mean, std)``, or None to read it off the dataset's transforms.
    """

    own: Callable[[Any, Any], BatchRecord] | None = None
    normalization: tuple[Sequence[float], Sequence[float]] | None = None

    def read(self, outputs: Any, batch: Any) -> BatchRecord:
        """The user's reading first; what it leaves open falls to the default."""
        default = read_default_batch(outputs, batch)
        if self.own is None:
            return default
        record = self.own(outputs, batch)
        if not isinstance(record, BatchRecord):
            raise ConfigurationError(
                f"FailureModes(read_batch=...) must return a BatchRecord, got {type(record).__name__}."
                " Leave a field None to have it found by the default rules."
            )
        return replace(default, **{k: _as_tensor(k, v) for k, v in vars(record).items() if v is not None})

    def read_graded(self, outputs: Any, batch: Any) -> BatchRecord:
        """Likewise, of a batch that must have labels.

        Raises:
            ConfigurationError: No labels were found.
        """
        record = self.read(outputs, batch)
        if record.labels is None:
            raise ConfigurationError(
                f"No labels were found in a batch of type {type(batch).__name__}. Batches are (x, y, ...) or mappings"
                " with keys such as image and label; for other forms give read_batch, (outputs, batch) -> BatchRecord."
                " A CombinedLoader must run its loaders one after the other (mode='sequential')."
            )
        return record

    def space(self, dataset: Any) -> ImageSpace:
        """The space of the images: what the user says, else what the dataset's transforms do, else [0, 1]."""
        if self.normalization is not None:
            mean, std = self.normalization
            return ImageSpace(tuple(mean), tuple(std))
        return find_normalization(dataset) or ImageSpace()


def _as_tensor(field: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"FailureModes(read_batch=...) returned a BatchRecord whose {field} are no tensor but a"
            f" {type(value).__name__} ({error}). Ids are integers, images and logits floats."
        ) from error


@dataclass(frozen=True)
class ExampleReader:
    """Fetches images by dataset index, the way the loader would, and brings them to [0, 1].

    Random transforms draw from the global generators: isolate them around calls.

    Attributes:
        dataset: A map-style dataset.
        collate: The loader's ``collate_fn``.
        reader: Reads the collated batch; ``outputs`` is None here.
    """

    dataset: Any
    collate: Callable[[list[Any]], Any]
    reader: BatchReader

    def images(self, ids: Sequence[int]) -> Tensor:
        """Return the images (n, C, H, W) float32 in [0, 1], on the CPU, in the order of ``ids``."""
        images = self.reader.read(None, self.collate([self.dataset[i] for i in ids])).images
        if images is None:
            raise DataError("the examples hold no images")
        return self.reader.space(self.dataset).to_unit(images).cpu()

    def batches(self, ids: Sequence[int]) -> Iterator[Tensor]:
        """Likewise for many ids, a batch at a time."""
        for start in range(0, len(ids), AT_ONCE):
            yield self.images(ids[start : start + AT_ONCE])


@dataclass(frozen=True)
class TrainingSample:
    """Some indices of the training set, the same in every epoch and run."""

    dataset: Any
    collate: Callable[[list[Any]], Any]
    ids: list[int]
    total: int


def training_sample(trainer: Trainer, *, seed: int, limit: int = MAX_REFERENCE) -> TrainingSample:
    """Draw at most ``limit`` indices of the training set by their hash.

    Raises:
        ConfigurationError: the run has no training set that can be indexed.
    """
    loader = _training_loader(trainer)
    if loader is None:
        raise ConfigurationError(
            "FailureModes(reference='train') needs one training DataLoader over a map-style dataset. Use"
            " reference='validation', or give the Trainer a datamodule."
        )
    total = len(loader.dataset)  # type: ignore[arg-type]
    order = np.argsort(stable_hash(np.arange(total), seed), kind="stable")
    return TrainingSample(loader.dataset, loader.collate_fn, np.sort(order[:limit]).tolist(), total)


def _training_loader(trainer: Trainer) -> DataLoader[Any] | None:
    loaders = trainer.train_dataloader
    if loaders is None:  # outside of fit
        datamodule = getattr(trainer, "datamodule", None)
        source = trainer.lightning_module if datamodule is None else datamodule
        if is_overridden("train_dataloader", source):
            if datamodule is not None:
                datamodule.setup("fit")
            loaders = source.train_dataloader()
    found = [] if loaders is None else CombinedLoader(loaders, "min_size").flattened
    if len(found) != 1 or not isinstance(found[0], DataLoader) or isinstance(found[0].dataset, IterableDataset):
        return None
    return found[0]
