"""A validation of a few batches in a temporary folder, in one process, and the context that checks share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from lightning_failures.callback import FailureModes
from lightning_failures.core.rng import isolated_rng
from lightning_failures.core.text import number
from lightning_failures.data.grades import BatchRecord
from lightning_failures.data.grading import IGNORE_INDEX
from lightning_failures.doctor.findings import Finding, ok, problem, skipped, warning
from lightning_failures.encoders.cached import CachedEncoder
from lightning_failures.errors import ConfigurationError, DataError
from lightning_failures.trainer.batch_grader import BatchGrader
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.dataset_attributes import dataset_length
from lightning_failures.trainer.example_reader import ExampleReader
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of
from lightning_failures.trainer.logits_hook import LogitsObserver
from lightning_failures.trainer.options import OPTIONS, group_options
from lightning_failures.trainer.ranks import Communicator

BATCHES = 2
UNSOLVED = "skipped until the problems above are solved"


@dataclass
class LoaderNotes:
    """The result of reading the first batches of one validation loader.

    Attributes:
        loader: The loader.
        grader: Has graded the batches as the callback would.
        record: The first batch, on the CPU.
        logits_by: How the logits were found.
        seen: Number of examples read.
        errors: Errors by subject: "batches" or "examples".
    """

    loader: Any
    grader: Grader | None = None
    record: BatchRecord | None = None
    logits_by: str = ""
    seen: int = 0
    errors: dict[str, Exception] = field(default_factory=dict)

    @property
    def dataset(self) -> Any:
        """The dataset of the loader."""
        return dataset_of(self.loader)

    @property
    def size(self) -> int:
        """Number of examples of the dataset; 0 if it has no length."""
        return dataset_length(self.dataset) or 0

    @property
    def images(self) -> Tensor | None:
        """The images of the first batch, as the model saw them."""
        return None if self.record is None else self.record.images


@dataclass
class CheckContext:
    """The configuration, and results that earlier checks keep for later ones.

    Attributes:
        trainer: The configured Trainer, which is only inspected.
        model: The model.
        datamodule: The data, unless the model has its own data loaders.
        callback: The configured callback, which is only inspected.
        folder: A temporary folder for everything that is written.
        cached_encoders: The encoders that could be loaded by role, "directions" and "trees".
        notes: One item for each validation loader that was read.
        dry_run_trainer: The Trainer that read the batches.
        problems: The names of checks that found a problem.
    """

    trainer: Trainer
    model: LightningModule
    datamodule: LightningDataModule | None
    callback: FailureModes
    folder: Path
    cached_encoders: dict[str, CachedEncoder] = field(default_factory=dict)
    notes: list[LoaderNotes] = field(default_factory=list)
    dry_run_trainer: Trainer | None = None
    problems: set[str] = field(default_factory=set)

    @property
    def reader(self) -> BatchReader:
        """A reader of batches with the options of the callback."""
        options = self.callback
        return BatchReader(options.read_batch, options.normalization, options.failed_below, options.logits_from)

    def example_reader(self, index: int) -> ExampleReader:
        """Return a reader of single examples of a loader that was read."""
        assert self.dry_run_trainer is not None
        return ExampleReader.of_loader(self.dry_run_trainer, self.notes[index].loader, index, self.reader)

    @property
    def first(self) -> LoaderNotes | None:
        """The first validation loader, if its batches could be read and graded."""
        notes = self.notes[0] if self.notes else None
        return notes if notes is not None and notes.seen and not notes.errors else None


def options_of(callback: FailureModes) -> dict[str, Any]:
    """Return the options of a callback by name; :func:`group_options` makes constructor arguments of them."""
    return {name: value for name, value in vars(callback).items() if name in OPTIONS}


def dry_run(context: CheckContext, *callbacks: Callback) -> tuple[Trainer, list[str]]:
    """Validate a few batches of each loader; return the Trainer, and the warnings of FailureModes.

    The callbacks, loggers and checkpoints of the configured Trainer are not used.
    """
    device = context.trainer.strategy.root_device
    # one process and no logger or checkpoint, so that nothing is written outside of the temporary folder
    trainer = Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision=context.trainer.precision,
        inference_mode=context.trainer.validate_loop.inference_mode,
        logger=DummyLogger(),
        callbacks=list(callbacks),
        limit_val_batches=BATCHES,
        default_root_dir=context.folder,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with isolated_rng(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.validate(context.model, datamodule=context.datamodule, verbose=False)
    return trainer, [str(one.message) for one in caught if "FailureModes" in str(one.message)]


class BatchProbe(Callback):
    """Reads and grades batches as :class:`FailureModes` does and records how, without analysing them."""

    def __init__(self, callback: FailureModes) -> None:
        options = options_of(callback)
        self.notes: list[LoaderNotes] = []
        names = ("class_names", "task", "groups_from", "metadata", "groupings", "clusters_from")
        self._options = {name: options[name] for name in names}
        self._index_recorder = IndexRecorderHook()
        reader, observer = (
            BatchReader(callback.read_batch, callback.normalization, callback.failed_below),
            LogitsObserver(options["logits_from"]),
        )
        self._batch_grader = BatchGrader(reader, self._index_recorder, observer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach to the loaders."""
        self._index_recorder.attach(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the module."""
        self._batch_grader.attach(pl_module)
        self.notes = [LoaderNotes(loader) for loader in self._index_recorder.begin_evaluation(trainer)]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Start to observe the logits of the step."""
        self._batch_grader.begin(trainer, pl_module, self.notes[dataloader_idx].loader)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Read, name and grade the batch; keep the first error."""
        notes = self.notes[dataloader_idx]
        if notes.errors:
            return
        try:
            self._note(trainer, pl_module, notes, outputs, batch, batch_idx)
        except Exception as error:
            notes.errors.setdefault("batches", error)
        self._batch_grader.end()

    def _note(
        self, trainer: Trainer, module: LightningModule, notes: LoaderNotes, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # read, then name, then grade: each step is skipped after an error, which is kept for the checks
        read = self._batch_grader.read(notes.loader, outputs, batch, batch_idx)
        record = read.record
        if notes.record is None:
            notes.record = _on_cpu(record)
        try:
            notes.grader = notes.grader or Grader(dataset=notes.dataset, ranks=Communicator(), **self._options)
            ids = self._batch_grader.name(read, notes.grader)
        except ConfigurationError as error:
            notes.errors["examples"] = error
            return
        graded = self._batch_grader.grade(read, ids, notes.grader, trainer, module)
        notes.logits_by = graded.logits_source.value
        if notes.grader.problem is not None:  # a run leaves these examples out, but a person should know
            notes.errors.setdefault("batches", DataError(notes.grader.problem))
        labels = record.labels
        is_labelled = None if labels is None else (labels.reshape(len(labels), -1) != IGNORE_INDEX).all(1)
        notes.seen += len(graded.ids) if is_labelled is None else int(is_labelled.sum())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Detach from the module."""
        self._batch_grader.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Detach from the loaders and the module."""
        self._index_recorder.detach()
        self._batch_grader.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Detach from the loaders and the module."""
        self._index_recorder.detach()
        self._batch_grader.detach()


def read_batches(context: CheckContext) -> None:
    """Fill ``context.notes``. Data are set up for ``fit``, because some datamodules support no other stage."""
    if context.datamodule is not None:
        context.datamodule.prepare_data()
        context.datamodule.setup("fit")
    probe = BatchProbe(context.callback)
    try:
        context.dry_run_trainer, _ = dry_run(context, probe)
    finally:
        context.notes = probe.notes


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Lightning logs for every Trainer: accelerators, tips, deprecations in its own code."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _on_cpu(record: BatchRecord) -> BatchRecord:
    return BatchRecord(*(None if value is None else value.detach().cpu() for value in vars(record).values()))


def check_dry_run(context: CheckContext) -> Iterator[Finding]:
    """Run the callback on a few batches, up to the report."""
    if context.problems:
        yield skipped(UNSOLVED)
        return
    # encoders are loaded already; the rest keeps the run inside the temporary folder and strict
    encoders = {role: cached.encoder for role, cached in context.cached_encoders.items()}
    changes = {
        "encoder": encoders.get("directions"),
        "robust_encoder": encoders.get("trees"),
        "cache_folder": context.folder / "cache",
        "on_error": "raise",
        # everything that changes the training or reads the training set
        "interventions": (),
        "auto_rollback": False,
        "verdict": None,
        "reference": "validation",
    }
    callback = FailureModes(**group_options(options_of(context.callback) | changes))
    _, warned = dry_run(context, callback)
    report = callback.last_report
    if report is None:
        yield problem("A validation of a few batches produced no report.")
        return
    files = sum(path.is_file() for path in context.folder.rglob("failures/**/*"))
    yield ok(
        f"{report.examples} images graded{', embedded' if encoders else ''} and analysed as in training (accuracy"
        f" {number(report.accuracy)}"
        f" with the weights as configured); {files} files written and deleted",
        examples=report.examples,
    )
    for message in dict.fromkeys(warned):
        yield warning(message)
