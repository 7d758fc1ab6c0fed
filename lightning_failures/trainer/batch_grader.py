"""The one place that reads, names and grades an evaluation batch, for the callback and for doctor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_failures.data.grades import BatchRecord
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of, missing_ids_error
from lightning_failures.trainer.logits_hook import LogitsObserver, forward_once_more
from lightning_failures.trainer.normalization_guard import normalization_doubt
from lightning_failures.trainer.penultimate import PenultimateObserver


class LogitsSource(Enum):
    """Where the logits of a batch come from, in the order of preference."""

    STEP_OUTPUT = "returned by the step"
    OBSERVED = "observed during the step"
    EXTRA_FORWARD = "computed by an extra forward"


@dataclass(frozen=True)
class ReadBatch:
    """A batch that has been read but not graded.

    Attributes:
        loader: The loader that it comes from.
        record: Logits, labels, images and ids, as far as the batch and the step give them; labels are always there.
        drawn: The dataset indices drawn for the batch; None if they cannot be known.
        batch: The batch itself, as the step was shown it.
    """

    loader: Any
    record: BatchRecord
    drawn: Sequence[int] | None
    batch: Any


@dataclass(frozen=True)
class GradedBatch:
    """A batch whose grades have been added to a grader.

    Attributes:
        ids: (B,) int64, on the CPU.
        images: (B, C, H, W) as the model saw them, or None.
        features: (B, D) float32, the penultimate features, if they are observed.
        logits_source: Where the logits come from.
    """

    ids: Tensor
    images: Tensor | None
    features: Tensor | None
    logits_source: LogitsSource


class BatchGrader:
    """Reads the batches of evaluation loaders, names their examples and adds their grades to a :class:`Grader`.

    The three steps are separate methods, so that a caller can distinguish their errors.

    Args:
        reader: Reads batches in the user's form.
        recorders: Records the dataset indices that each loader draws.
        observer: Observes the logits that a step computes.
    """

    def __init__(
        self,
        reader: BatchReader,
        recorders: IndexRecorderHook,
        observer: LogitsObserver,
    ) -> None:
        self._reader, self._recorders, self._observer = reader, recorders, observer
        self._penultimate: PenultimateObserver | None = None

    @property
    def head(self) -> str | None:
        """Name of the submodule whose input are the penultimate features; None if they are not kept or not found."""
        return None if self._penultimate is None else self._penultimate.head

    def keep_penultimate_features(self, head: str | None = None) -> None:
        """Observe the penultimate features too, from the next ``attach`` on; ``head`` names the submodule."""
        if self._penultimate is not None:
            self._penultimate.detach()
        self._penultimate = PenultimateObserver(head)

    @property
    def keeps_features(self) -> bool:
        """Whether penultimate features are observed."""
        return self._penultimate is not None

    def attach(self, module: LightningModule) -> None:
        """Register the hooks of the observers; a second call does nothing."""
        self._observer.attach(module)
        if self._penultimate is not None:
            self._penultimate.attach(module)

    def detach(self) -> None:
        """Remove the hooks of the observers and release what they hold."""
        self._observer.detach()
        if self._penultimate is not None:
            self._penultimate.detach()

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Start to observe one step."""
        # under DDP and its relatives, fit runs the step itself through the module's __call__
        self._observer.begin(redirected=trainer.strategy.model is not module)
        if self._penultimate is not None:
            self._penultimate.begin()

    def end(self) -> None:
        """Stop observing and release what was observed."""
        self._observer.end()
        if self._penultimate is not None:
            self._penultimate.end()

    def read(self, loader: Any, outputs: Any, batch: Any, batch_idx: int) -> ReadBatch:
        """Read a batch and the indices drawn for it.

        Raises:
            ConfigurationError: The batch has no labels, or ``read_batch`` returns something else than a record.
        """
        recorder = self._recorders.recorder(loader)
        drawn = None if recorder is None else recorder.take(batch_idx)
        return ReadBatch(loader, self._reader.read_graded(outputs, batch), drawn, batch)

    def name(self, batch: ReadBatch, grader: Grader) -> Tensor | Sequence[int]:
        """Return the B ids of the examples of a batch.

        Raises:
            ConfigurationError: Neither the user nor the sampler names the examples, or the ids cannot serve as indices.
        """
        ids = grader.name_ids(batch.record.ids, batch.drawn)
        if ids is None:
            raise missing_ids_error(batch.loader)
        return ids

    def grade(
        self,
        batch: ReadBatch,
        ids: Tensor | Sequence[int],
        grader: Grader,
        trainer: Trainer,
        module: LightningModule,
    ) -> GradedBatch:
        """Find the logits of a batch and add its grades to ``grader``.

        Raises:
            ConfigurationError: No logits, or several candidates, were found; or numbers do not fit.
            DataError: A label is out of range.
        """
        record = batch.record
        assert record.labels is not None
        logits, source = record.logits, LogitsSource.STEP_OUTPUT
        if logits is None:
            logits = self._observer.logits(batch_size=len(record.labels), classes=grader.logit_columns)
            source = LogitsSource.OBSERVED
        if logits is None:
            logits = forward_once_more(trainer, module, self._reader.shown_images(batch.batch, record))
            source = LogitsSource.EXTRA_FORWARD
        graded_ids = grader.grade(logits, record.labels, ids)
        features = None if self._penultimate is None else self._penultimate.features(logits)
        return GradedBatch(graded_ids, record.images, features, source)

    def image_space(self, loader: Any) -> ImageSpace:
        """Return how to bring the images of a loader to [0, 1]."""
        return self._reader.space(dataset_of(loader))

    def doubt(self, batch: ReadBatch) -> str | None:
        """Return why the normalisation of the loader cannot be that of the images of a batch, or None."""
        images = batch.record.images
        return None if images is None else normalization_doubt(images, self.image_space(batch.loader))
