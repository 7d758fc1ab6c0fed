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
from lightning_failures.trainer.dataset_attributes import dataset_columns
from lightning_failures.trainer.example_ids import are_names, hashed_names
from lightning_failures.trainer.image_space import ImageSpace, find_normalization


@dataclass(frozen=True)
class BatchReader:
    """Reads the batches of this user.

    Attributes:
        read_batch: The user's ``(outputs, batch) -> BatchRecord``, or None.
        normalization: The user's ``(mean, std)``, or None to take it from the dataset's transforms.
        failed_below: Score below which an example failed, or None.
        logits_from: Name of the submodule whose output is the logits, or None.
    """

    read_batch: Callable[[Any, Any], BatchRecord] | None = None
    normalization: tuple[Sequence[float], Sequence[float]] | None = None
    failed_below: float | None = None
    logits_from: str | None = None

    def read(self, outputs: Any, batch: Any, dataset: Any = None) -> BatchRecord:
        """Return the record of a batch: the fields of the user's ``read_batch``, the others by the default rules.

        The types of the columns of ``dataset``, if it has some, decide which are images and labels.
        """
        default = read_default_batch(outputs, batch, dataset_columns(dataset))
        if self.read_batch is None:
            return default
        record = self.read_batch(outputs, batch)
        if not isinstance(record, BatchRecord):
            raise ConfigurationError(
                f"FailureModes(read_batch=...) must return a BatchRecord, got {type(record).__name__}."
                " A field that is None is found by the default rules."
            )
        given = {k: _as_tensor(k, v) for k, v in vars(record).items() if v is not None}
        if record.has_verdict and default.labels is not None and not _name_classes(default.labels):
            default = replace(default, labels=None)  # masks, boxes or numbers are no classes
        return replace(default, **given)

    def read_graded(self, outputs: Any, batch: Any, dataset: Any = None) -> BatchRecord:
        """Return the record of a batch that must have labels or a verdict on each example.

        Raises:
            ConfigurationError: No labels were found, or verdicts and ``failed_below`` do not go together.
        """
        record = self.read(outputs, batch, dataset)
        if record.has_verdict or self.failed_below is not None:
            return self._judged(record)
        if record.labels is None:
            raise ConfigurationError(
                f"No labels were found in a batch of type {type(batch).__name__}. Batches are (x, y, ...) or mappings"
                " with keys such as image and label; for other forms give read_batch, (outputs, batch) -> BatchRecord."
                " A CombinedLoader must have mode='sequential'. Detection and other tasks without class labels need a"
                " verdict on each example: BatchRecord(correct=...), or BatchRecord(score=...) with failed_below."
            )
        return record

    def _judged(self, record: BatchRecord) -> BatchRecord:
        """Return a record whose ``correct`` follows from its scores; examples without a score get no label."""
        score, correct, labels = record.score, record.correct, record.labels
        if score is None and self.failed_below is not None:
            raise ConfigurationError(
                f"FailureModes(failed_below={self.failed_below}) needs BatchRecord(score=...) with (B,) numbers from"
                " read_batch."
            )
        if score is not None and self.failed_below is None:
            raise ConfigurationError(
                "FailureModes(read_batch=...) returns scores; give failed_below=..., the score below which an example"
                " failed."
            )
        if score is not None:
            score = score.reshape(score.shape or (1,)).detach().cpu().double()
            correct = score >= (self.failed_below or 0.0)
        assert correct is not None
        correct = correct.reshape(correct.shape or (1,)).detach().cpu()
        if correct.ndim != 1 or not bool(((correct == 0) | (correct == 1)).all()):
            raise ConfigurationError(
                "BatchRecord(correct=...) must be (B,) booleans, and score (B,) numbers, one for each example; got"
                f" {correct.dtype} of shape {tuple(correct.shape)}."
            )
        if labels is not None and (not _name_classes(labels) or len(labels) != len(correct)):
            raise ConfigurationError(
                f"Labels beside a verdict must be (B,) integers, one for each of the {len(correct)} examples; got"
                f" {labels.dtype} of shape {tuple(labels.shape)}. Leave them None to have one group."
            )
        if labels is not None:
            labels = labels.detach().cpu().reshape(-1)
        return replace(record, labels=labels, correct=correct.bool(), score=score)

    def shown_images(self, batch: Any, record: BatchRecord, dataset: Any = None) -> Tensor | None:
        """Return the images that the batch itself holds, as its step is shown them; else those of its record.

        The user's ``read_batch`` may return other images, for the encoders alone: unnormalised, or with the channels
        first.
        """
        own = read_default_batch(None, batch, dataset_columns(dataset)).images
        return record.images if own is None else own

    def space(self, dataset: Any) -> ImageSpace:
        """Return the space of the images: the user's normalisation, else that of the transforms, else [0, 1]."""
        if self.normalization is not None:
            mean, std = self.normalization
            return ImageSpace(tuple(mean), tuple(std))
        return find_normalization(dataset) or ImageSpace()


def _name_classes(labels: Tensor) -> bool:
    """Return whether labels are integers, one for each example."""
    is_column = labels.ndim == 1 or (labels.ndim == 2 and labels.shape[1] == 1)
    return is_column and not labels.is_floating_point()


def _as_tensor(field: str, value: Any) -> Tensor:
    if field == "ids" and are_names(value):
        return hashed_names(value)
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(
            f"FailureModes(read_batch=...) returned a BatchRecord whose {field} cannot be converted from"
            f" {type(value).__name__} to a tensor ({error}). Ids are integers or texts, images and logits floats."
        ) from error
