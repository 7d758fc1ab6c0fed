"""Where reports go: files on disk always, and what each logger of the Trainer can show.

Files, each importing only from those above it::

    base         What a sink is, and how many of them are served without one failure stopping the rest
    files        Files on disk: the record that is always written, whatever logger there is
    layout       TensorBoard's page "Custom Scalars": the keys under ``failures/`` in charts that belong together
    projector    TensorBoard's projector: the embeddings of some examples as points, with thumbnails and what is
    csv          CSV: all classes of all analyses in one table beside Lightning's ``metrics.csv``
    tensorboard  TensorBoard: scalars laid out in charts, a ranked table, sentences, pictures and points under
    wandb        Weights & Biases: two bounded tables an analysis, pictures, and the files of the report as an
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_failures.writers.base import Writer, each_writer
from lightning_failures.writers.csv import CSVWriter
from lightning_failures.writers.files import FileWriter, write_report
from lightning_failures.writers.tensorboard import TensorBoardWriter
from lightning_failures.writers.wandb import WandbWriter

__all__ = [
    "CSVWriter",
    "FileWriter",
    "TensorBoardWriter",
    "WandbWriter",
    "Writer",
    "each_writer",
    "write_report",
    "writers_for",
]


def writers_for(loggers: Iterable[Any], folder: Path, *, feature_names: Path | None = None) -> list[Writer]:
    """Return the sinks of a run.

    Loggers are told apart by the names of their classes, because ``lightning.pytorch`` and ``pytorch_lightning`` have
    their own. A logger of another kind still gets all scalars through Lightning; reports and pictures are then on disk.

    Args:
        loggers: Those of the Trainer.
        folder: Where the files go.
        feature_names: Where people name features; None: features.yaml in ``folder``.
    """
    sinks: list[Writer] = [FileWriter(folder, feature_names)]
    for logger in loggers:
        names = {base.__name__ for base in type(logger).__mro__}
        if "TensorBoardLogger" in names:
            sinks.append(TensorBoardWriter(logger))
        elif "WandbLogger" in names:
            sinks.append(WandbWriter(logger, folder))
        elif "CSVLogger" in names:
            sinks.append(CSVWriter(Path(logger.log_dir)))
        elif "DummyLogger" not in names:  # of fast_dev_run
            warnings.warn(
                f"FailureModes knows no way to show pictures in a {type(logger).__name__}: they are in {folder}.",
                stacklevel=2,
            )
    return sinks
