"""The one place that reads, names and grades an evaluation batch, for the callback and for doctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_failures.data.grades import BatchRecord
from lightning_failures.data.grading import VERDICT_REMEDY, has_views, not_classes
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.example_ids import ids_in
from lightning_failures.trainer.example_names import digests_in
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.image_space import ImageSpace
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of, missing_ids_error
from lightning_failures.trainer.logits_hook import LogitsObserver, forward_once_more
from lightning_failures.trainer.normalization_guard import normalization_doubt
from lightning_failures.trainer.penultimate import PenultimateObserver
from lightning_failures.trainer.readings import LogitsSource


@dataclass(frozen=True)
class ReadBatch:
    """A batch that has been read but not graded.

    Attributes:
        loader: The loader that it comes from.
        record: Logits, labels, images and ids, as far as the batch and the step give them; labels are always there.
        drawn: The dataset indices drawn for the batch; None if they cannot be known.
        batch: The batch itself, as the step was shown it.
        are_preds: Whether the logits are the ``preds`` that the step returned.
    """

    loader: Any
    record: BatchRecord
    drawn: Sequence[int] | None
    batch: Any
    are_preds: bool = False


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

    Attributes:
        features_problem: Why the last graded batch has no penultimate features, if that is no error.
    """

    def __init__(
        self,
        reader: BatchReader,
        recorders: IndexRecorderHook,
        observer: LogitsObserver,
    ) -> None:
        self._reader, self._recorders, self._observer = reader, recorders, observer
        self._penultimate: PenultimateObserver | None = None
        self._tolerant = False
        self.features_problem: str | None = None

    @property
    def head(self) -> str | None:
        """Name of the submodule whose input are the penultimate features; None if they are not kept or not found."""
        return None if self._penultimate is None else self._penultimate.head

    def keep_penultimate_features(
        self, head: str | None = None, *, also: str | None = None, tolerant: bool = False
    ) -> None:
        """Observe the penultimate features too, from the next ``attach`` on.

        Args:
            head: Name of the submodule whose input they are; None: it is found.
            also: Name of a submodule that may be the head although it has submodules of its own.
            tolerant: Whether a model without such features is no error, but :attr:`features_problem`.
        """
        if self._penultimate is not None:
            self._penultimate.detach()
        self._penultimate, self._tolerant, self.features_problem = PenultimateObserver(head, also=also), tolerant, None

    @property
    def keeps_features(self) -> bool:
        """Whether penultimate features are observed."""
        return self._penultimate is not None

    def check(self, module: LightningModule) -> None:
        """Raise an error for a submodule that does not exist; no hook remains.

        Raises:
            ConfigurationError: ``logits_from`` or the head is not a submodule of the module.
        """
        try:
            self.attach(module)
        finally:
            self.detach()

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

    def begin(self, trainer: Trainer, module: LightningModule, loader: Any) -> None:
        """Start to observe one step, and note which batch of the loader it is."""
        self._recorders.begin_batch(trainer, loader)
        # under DDP and its relatives, fit runs the step itself through the module's __call__
        self._observer.begin(redirected=trainer.strategy.model is not module)
        if self._penultimate is not None:
            self._penultimate.begin()

    def end(self) -> None:
        """Stop observing and release what was observed."""
        self._recorders.end_batch()
        self._observer.end()
        if self._penultimate is not None:
            self._penultimate.end()

    def read(self, loader: Any, outputs: Any, batch: Any, batch_idx: int) -> ReadBatch:
        """Read a batch and the indices drawn for it.

        Raises:
            ConfigurationError: The batch has no labels, or ``read_batch`` returns something else than a record.
            DataError: Something else draws from the iterator of the loop.
        """
        drawn = self._recorders.take(loader, batch_idx)
        record = self._reader.read_graded(outputs, batch, dataset_of(loader))
        are_preds = isinstance(outputs, Mapping) and record.logits is not None and record.logits is outputs.get("preds")
        return ReadBatch(loader, record, drawn, batch, are_preds)

    def name(self, batch: ReadBatch, grader: Grader) -> Tensor | Sequence[int]:
        """Return the B ids of the examples of a batch: the user's, else the indices drawn, else the batch's own.

        Raises:
            ConfigurationError: Neither the user, nor the sampler, nor the batch names the examples, or the ids cannot
                serve as indices.
        """
        ids = batch.record.ids if isinstance(batch.record.ids, Tensor) else None  # texts have been hashed
        if ids is None and batch.drawn is None:
            counted = batch.record.labels if batch.record.correct is None else batch.record.correct
            ids = None if counted is None else ids_in(batch.batch, len(counted))
        named = grader.name_ids(ids, batch.drawn)
        if named is None:
            raise missing_ids_error(batch.loader)
        return named

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
        record, digests = batch.record, self._digests(batch, len(ids))
        if record.correct is not None:
            known = None if record.score is None else ~record.score.isnan()
            graded_ids = grader.judge(record.correct, record.labels, ids, digests=digests, known=known)
            return GradedBatch(graded_ids, record.images, None, LogitsSource.VERDICT)
        assert record.labels is not None
        if problem := not_classes(record.labels):
            raise ConfigurationError(f"{problem} {VERDICT_REMEDY}")
        logits, source = record.logits, LogitsSource.PREDS if batch.are_preds else LogitsSource.STEP_OUTPUT
        observed: Tensor | None = None
        stacked: int | None = None
        if logits is not None and not logits.is_floating_point():
            observed = self._observed_beside_classes(len(record.labels), grader)
        if logits is None:
            stacked = self._observer.stacked_rows(len(record.labels))
            logits = self._observer.logits(batch_size=len(record.labels), classes=grader.logit_columns)
            source = LogitsSource.OBSERVED
        if logits is None:
            logits = forward_once_more(
                trainer, module, self._reader.shown_images(batch.batch, record, dataset_of(batch.loader))
            )
            source = LogitsSource.EXTRA_FORWARD
            grader.note_stacked(stacked, len(record.labels))
        graded_ids = grader.grade(logits, record.labels, ids, digests=digests, source=source, observed=observed)
        return GradedBatch(graded_ids, record.images, self._features_behind(logits), source)

    def _features_behind(self, logits: Tensor) -> Tensor | None:
        """Return the penultimate features of a batch; None if they are not observed, or cannot be."""
        if self._penultimate is None:
            return None
        try:
            features = self._penultimate.features(logits)
        except ConfigurationError as error:
            if not self._tolerant:
                raise
            self.features_problem = str(error)
            return None
        self.features_problem = None
        return features

    def _observed_beside_classes(self, batch_size: int, grader: Grader) -> Tensor | None:
        """Return the logits that the step computed beside the classes that it returned; None if that is not clear."""
        try:
            return self._observer.logits(batch_size=batch_size, classes=grader.logit_columns)
        except ConfigurationError:
            return None

    def _digests(self, batch: ReadBatch, size: int) -> Tensor | None:
        """Return the digests (B,) of the images of a batch; None if it has no image for each example."""
        images = batch.record.images
        if images is None or images.ndim < 2 or len(images) != size:
            return None
        try:
            return digests_in(images, self._reader.space(dataset_of(batch.loader)))
        except ConfigurationError:  # a normalisation that cannot be read is an error where an encoder needs it
            return None

    def image_space(self, loader: Any) -> ImageSpace:
        """Return how to bring the images of a loader to [0, 1]."""
        return self._reader.space(dataset_of(loader))

    def doubt(self, batch: ReadBatch) -> str | None:
        """Return what a reader should know of the images of a batch: one of several views, an odd normalisation."""
        images = batch.record.images
        if images is None:
            return None
        doubts = (_views_note(batch.batch, images), normalization_doubt(images, self.image_space(batch.loader)))
        return " ".join(doubt for doubt in doubts if doubt) or None


def _views_note(batch: Any, images: Tensor) -> str | None:
    """Return a sentence on a batch whose images are the first of several views; None for other batches."""
    held: Any = batch[0] if isinstance(batch, list | tuple) and batch else None
    if isinstance(batch, Mapping):
        held = next((value for value in batch.values() if has_views(value) and value[0] is images), None)
    if not has_views(held) or held[0] is not images:
        return None
    return (
        f"Batches hold {len(held)} views of each image: FailureModes looks at the first. Give read_batch for another."
    )
