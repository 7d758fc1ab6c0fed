"""A training with a planted shortcut that needs no network: coloured digits and packaged encoders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_failures.bundled.digits import ColouredDigitsDataModule, DigitClassifier
from lightning_failures.callback import AdvancedOptions, DataOptions, FailureModes
from lightning_failures.cli.options import demo_options
from lightning_failures.core.atomic import write_atomically
from lightning_failures.data.report import FailureReport
from lightning_failures.report.confusions import confusion_lines
from lightning_failures.report.findings import findings_lines
from lightning_failures.report.html.write import write_html
from lightning_failures.report.run_folder import HTML_FILE
from lightning_failures.report.slices import slice_lines
from lightning_failures.report.sparse import sparse_lines
from lightning_failures.report.tables import class_table, enrichment_lines
from lightning_failures.writers import write_report

Truth = Mapping[str, str]


def run_demo(arguments: Sequence[str]) -> None:
    """Run ``lightning-failures demo``."""
    demo(**vars(demo_options(arguments)))


def demo(*, seed: int = 0, output: Path = Path("failures-demo"), epochs: int = 6, shortcut: float = 0.95) -> None:
    """Train a small classifier on coloured digits and show on which kinds of digits it fails.

    Real handwritten digits are drawn in colour. Eight of the ten classes have a usual tint, so the classifier learns
    the tint instead of the shape, and fails on digits in an unusual tint. Nothing is downloaded.

    Args:
        seed: Seed of the tints, the images and the weights. Equal seeds give equal results.
        output: Folder for the TensorBoard logs, the pictures and the report.
        epochs: Number of training epochs, each with one analysis.
        shortcut: Probability of the usual tint in training, 0.5 (no shortcut) to 0.99.
    """
    report, log_dir = train_digits(seed=seed, output=output, epochs=epochs, shortcut=shortcut)
    write_report(report, output)
    page = log_dir / "failures" / HTML_FILE
    write_atomically(output / HTML_FILE, (page if page.is_file() else write_html(page.parent)).read_bytes())
    print(f"\nFailure modes after {epochs} epochs, {report.examples} validation images:\n")
    print("\n".join(findings_lines(report, str(log_dir))) + "\n")
    print(class_table(report))
    if lines := confusion_lines(report):
        print("\nMost frequent confusions:\n  " + "\n  ".join(lines))
    if lines := slice_lines(report):
        print("\nSlices that fail more often than the others:\n  " + "\n  ".join(lines))
    if lines := sparse_lines(report, limit=5):
        print("\nSparse decision layer:\n  " + "\n  ".join(lines))
    if lines := enrichment_lines(report):
        print("\nAttributes over-represented among the flagged examples:\n  " + "\n  ".join(lines))
    print(
        f"\nReport:       {output / HTML_FILE} (one file, for any browser; all records are in {log_dir / 'failures'})"
        f"\nTensorBoard:  tensorboard --logdir {output}"
    )


def train_digits(
    *, seed: int, output: Path, epochs: int, shortcut: float, progress: bool = True
) -> tuple[FailureReport, Path]:
    """Train with the callback; return the last report, with the planted truth, and the log folder."""
    L.seed_everything(seed, verbose=False)
    callback = FailureModes(
        encoder="embedded:digits",
        robust_encoder="embedded:digits",
        captions="digits",
        sparse=True,
        on_error="raise",
        data=DataOptions(metadata=("tint", "background", "stroke", "posture")),
        advanced=AdvancedOptions(seed=seed),
    )
    data = ColouredDigitsDataModule(seed=seed, shortcut=shortcut)
    logger = TensorBoardLogger(output, name="coloured_digits")
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=logger,
        callbacks=[callback],
        enable_progress_bar=progress,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with _one_thread(), warnings.catch_warnings():
        # the images are in memory already: workers would only cost time
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        # Lightning's own use of a deprecated check of newer torch
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
        trainer.fit(DigitClassifier(), datamodule=data)
    assert callback.last_report is not None  # on_error="raise"
    report = attach_truth(callback.last_report.report, data.sets["validation"].truth)
    write_report(report, Path(logger.log_dir) / "failures")
    return report, Path(logger.log_dir)


def attach_truth(report: FailureReport, truth: Sequence[Truth | None]) -> FailureReport:
    """Return the report with the planted tints of each class. The analysis itself has never seen them."""
    classes = (
        replace(entry, truth=None if planted is None else dict(planted))
        for entry, planted in zip(report.classes, truth, strict=True)
    )
    return replace(report, classes=tuple(classes))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread of torch inside the block.

    Two threads take a third less time on idle cores and more time on busy ones: see ``benchmarks/demo_threads.py``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
