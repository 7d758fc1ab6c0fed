"""A validation of a few batches by a Trainer of its own, in one process, which leaves nothing behind."""

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
from lightning_failures.errors import ConfigurationError
from lightning_failures.trainer.batch_grader import BatchGrader
from lightning_failures.trainer.batch_reader import BatchReader
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.index_recorder import IndexRecorderHook, dataset_of, evaluation_loaders
from lightning_failures.trainer.logits_hook import LogitsObserver
from lightning_failures.trainer.options import OPTIONS, group_options
from lightning_failures.trainer.ranks import Communicator

BATCHES = 2
UNSOLVED = "not before the problems above are solved"


@dataclass
class LoaderNotes:
    """What was seen of one validation loader.

    Attributes:
        loader: The loader.
        grader: Has graded the batches as the callback would.
        record: The first batch, on the CPU.
        logits_by: How the logits were found.
        seen: How many examples.
        errors: What went wrong, by what it concerns: "batches" or "examples".
    """

    loader: Any
    grader: Grader | None = None
    record: BatchRecord | None = None
    logits_by: str = ""
    seen: int = 0
    errors: dict[str, Exception] = field(default_factory=dict)

    @property
    def dataset(self) -> Any:
        """Of the loader."""
        return dataset_of(self.loader)

    @property
    def size(self) -> int:
        """How many examples the dataset has; 0 if it does not tell."""
        try:
            return len(self.dataset)
        except (TypeError, NotImplementedError):
            return 0

    @property
    def images(self) -> Tensor | None:
        """The images of the first batch, as the model saw them."""
        return None if self.record is None else self.record.images


@dataclass
class CheckContext:
    """What is examined, and what earlier checks have found out for later ones.

    Attributes:
        trainer: As configured. It is asked, never run.
        model: The model.
        datamodule: The data, unless the model brings its own.
        modes: The callback, likewise only asked.
        folder: A temporary folder for all that is written.
        lenses: The encoders by role, "directions" and "trees", as far as they could be loaded.
        notes: One for each validation loader, as far as it was read.
        rehearsed: The Trainer that read them.
        problems: The checks that have found any.
    """

    trainer: Trainer
    model: LightningModule
    datamodule: LightningDataModule | None
    modes: FailureModes
    folder: Path
    cached_encoders: dict[str, CachedEncoder] = field(default_factory=dict)
    notes: list[LoaderNotes] = field(default_factory=list)
    rehearsed: Trainer | None = None
    problems: set[str] = field(default_factory=set)

    @property
    def reader(self) -> BatchReader:
        """Reads batches as the callback does."""
        return BatchReader(self.modes.read_batch, self.modes.normalization)

    @property
    def first(self) -> LoaderNotes | None:
        """The first validation loader, if its batches could be read and graded."""
        notes = self.notes[0] if self.notes else None
        return notes if notes is not None and notes.seen and not notes.errors else None


def options_of(modes: FailureModes) -> dict[str, Any]:
    """Return the options of a callback by name; :func:`group_options` makes arguments of them."""
    return {name: value for name, value in vars(modes).items() if name in OPTIONS}


def rehearse(case: CheckContext, *callbacks: Callback) -> tuple[Trainer, list[str]]:
    """Validate a few batches of each loader; return the Trainer and what the callbacks warned of.

    The model's own callbacks, loggers and checkpoints take no part in it.
    """
    device = case.trainer.strategy.root_device
    trainer = Trainer(
        accelerator=device.type,
        devices=1 if device.index is None else [device.index],
        precision=case.trainer.precision,
        inference_mode=case.trainer.validate_loop.inference_mode,
        logger=DummyLogger(),
        callbacks=list(callbacks),
        limit_val_batches=BATCHES,
        default_root_dir=case.folder,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with isolated_rng(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.validate(case.model, datamodule=case.datamodule, verbose=False)
    return trainer, [str(one.message) for one in caught if "FailureModes" in str(one.message)]


class Probe(Callback):
    """Reads and grades batches as :class:`FailureModes` does, and notes how, in place of analysing them."""

    def __init__(self, modes: FailureModes) -> None:
        options = options_of(modes)
        self.notes: list[LoaderNotes] = []
        self._options = {name: options[name] for name in ("class_names", "task", "groups_from", "metadata")}
        self._tap = IndexRecorderHook()
        reader, observer = BatchReader(modes.read_batch, modes.normalization), LogitsObserver(options["logits_from"])
        self._batch_grader = BatchGrader(reader, self._tap, observer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the loaders."""
        self._tap.attach(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the module."""
        self._batch_grader.attach(pl_module)
        self.notes = [LoaderNotes(loader) for loader in evaluation_loaders(trainer)]

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watch what the step computes."""
        self._batch_grader.begin(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Read, name and grade the batch, as far as it goes."""
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
        assert record.labels is not None
        notes.seen += int((record.labels.reshape(len(record.labels), -1) != IGNORE_INDEX).all(1).sum())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave everything as it was."""
        self._tap.detach()
        self._batch_grader.detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As in ``teardown``."""
        self._tap.detach()
        self._batch_grader.detach()


def read_batches(case: CheckContext) -> None:
    """Fill ``case.notes``. Data are set up as for ``fit``: some data modules know no other stage."""
    if case.datamodule is not None:
        case.datamodule.prepare_data()
        case.datamodule.setup("fit")
    probe = Probe(case.modes)
    try:
        case.rehearsed, _ = rehearse(case, probe)
    finally:
        case.notes = probe.notes


@contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning tells of every Trainer: accelerators, tips, its own use of what is deprecated."""
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


def check_rehearsal(case: CheckContext) -> Iterator[Finding]:
    """The callback itself on a few batches, from the first to the report."""
    if case.problems:
        yield skipped(UNSOLVED)
        return
    loaded = {role: cached.encoder for role, cached in case.cached_encoders.items()}
    fresh = {
        "encoder": loaded.get("directions"),
        "robust_encoder": loaded.get("trees"),
        "cache_folder": case.folder / "cache",
        "on_error": "raise",
        # what takes part in training, or looks at the training set
        "interventions": (),
        "auto_rollback": False,
        "verdict": None,
        "reference": "validation",
    }
    modes = FailureModes(**group_options(options_of(case.modes) | fresh))
    _, warned = rehearse(case, modes)
    report = modes.last_report
    if report is None:
        yield problem("A validation of a few batches ended without a report.")
        return
    files = sum(path.is_file() for path in case.folder.rglob("failures/**/*"))
    yield ok(
        f"{report.examples} images graded{', embedded' if loaded else ''} and analysed as in training (accuracy"
        f" {number(report.accuracy)}"
        f" with the weights as configured); {files} files written and thrown away",
        examples=report.examples,
    )
    for message in dict.fromkeys(warned):
        yield warning(message)
