"""Where reports go: files on disk always, and what each logger of the Trainer can show."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_failures.sinks.base import Sink, each_sink
from lightning_failures.sinks.csv import CSVSink
from lightning_failures.sinks.files import FileSink, write_html, write_report
from lightning_failures.sinks.tensorboard import TensorBoardSink
from lightning_failures.sinks.wandb import WandbSink

__all__ = [
    "CSVSink",
    "FileSink",
    "Sink",
    "TensorBoardSink",
    "WandbSink",
    "each_sink",
    "sinks_for",
    "write_html",
    "write_report",
]


def sinks_for(loggers: Iterable[Any], folder: Path, *, feature_names: Path | None = None) -> list[Sink]:
    """Return the sinks of a run.

    Loggers are told apart by the names of their classes, because ``lightning.pytorch`` and ``pytorch_lightning`` have
    their own. A logger of another kind still gets all scalars through Lightning; reports and pictures are then on disk.

    Args:
        loggers: Those of the Trainer.
        folder: Where the files go.
        feature_names: Where people name features; None: features.yaml in ``folder``.
    """
    sinks: list[Sink] = [FileSink(folder, feature_names)]
    for logger in loggers:
        names = {base.__name__ for base in type(logger).__mro__}
        if "TensorBoardLogger" in names:
            sinks.append(TensorBoardSink(logger))
        elif "WandbLogger" in names:
            sinks.append(WandbSink(logger, folder))
        elif "CSVLogger" in names:
            sinks.append(CSVSink(Path(logger.log_dir)))
        elif "DummyLogger" not in names:  # of fast_dev_run
            warnings.warn(
                f"FailureModes knows no way to show pictures in a {type(logger).__name__}: they are in {folder}.",
                stacklevel=2,
            )
    return sinks
