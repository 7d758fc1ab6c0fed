"""Read batches in the user's form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_failures.data.grades import BatchRecord
from lightning_failures.data.grading import read_default_batch
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.image_space import ImageSpace, find_normalization


@dataclass(frozen=True)
class BatchReader:
    """Reads the batches of this user.

    Attributes:
        read_batch: The user's ``(outputs, batch) -> BatchRecord``, or None.
        normalization: The user's ``(mean, std)``, or None to take it from the dataset's transforms.
        logits_from: Name of the submodule whose output is the logits, or None.
    """

    read_batch: Callable[[Any, Any], BatchRecord] | None = None
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    logits_from: str | None = None

    def read(self, outputs: Any, batch: Any) -> BatchRecord:
        """Return the record of a batch: the fields of the user's ``read_batch``, the others by the default rules."""
        default = read_default_batch(outputs, batch)
        if self.read_batch is None:
            return default
        record = self.read_batch(outputs, batch)
        if not isinstance(record, BatchRecord):
            raise ConfigurationError(
                f"FailureModes(read_batch=...) must return a BatchRecord, got {type(record).__name__}."
                " A field that is None is found by the default rules."
            )
        return replace(default, **{k: _as_tensor(k, v) for k, v in vars(record).items() if v is not None})

    def read_graded(self, outputs: Any, batch: Any) -> BatchRecord:
        """Return the record of a batch that must have labels.

        Raises:
            ConfigurationError: No labels were found.
        """
        record = self.read(outputs, batch)
        if record.labels is None:
            raise ConfigurationError(
                f"No labels were found in a batch of type {type(batch).__name__}. Batches are (x, y, ...) or mappings"
                " with keys such as image and label; for other forms give read_batch, (outputs, batch) -> BatchRecord."
                " A CombinedLoader must have mode='sequential'."
            )
        return record

    def shown_images(self, batch: Any, record: BatchRecord) -> Tensor | None:
        """Return the images that the batch itself holds, as its step is shown them; else those of its record.

        The user's ``read_batch`` may return other images, for the encoders alone: unnormalised, or with the channels
        first.
        """
        own = read_default_batch(None, batch).images
        return record.images if own is None else own

    def space(self, dataset: Any) -> ImageSpace:
        """Return the space of the images: the user's normalisation, else that of the transforms, else [0, 1]."""
        if self.normalization is not None:
            mean, std = self.normalization
            return ImageSpace(tuple(mean), tuple(std))
        return find_normalization(dataset) or ImageSpace()


def _as_tensor(field: str, value: Any) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"FailureModes(read_batch=...) returned a BatchRecord whose {field} cannot be converted from"
            f" {type(value).__name__} to a tensor ({error}). Ids are integers, images and logits floats."
        ) from error
