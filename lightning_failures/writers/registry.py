"""The writer of each logger class, those of other packages included."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning_failures.writers.base import Writer
from lightning_failures.writers.csv import CSVWriter
from lightning_failures.writers.files import FileWriter
from lightning_failures.writers.generic import GenericWriter, can_log
from lightning_failures.writers.mlflow import MLFlowWriter
from lightning_failures.writers.tensorboard import TensorBoardWriter
from lightning_failures.writers.wandb import WandbWriter

WriterFactory = Callable[[Any, Path], Writer | None]
"""``factory(logger, folder)``, ``folder`` being that of the report files; None for loggers that need no writer."""

_FACTORIES: dict[str, WriterFactory] = {
    "TensorBoardLogger": lambda logger, folder: TensorBoardWriter(logger),
    "WandbLogger": WandbWriter,
    "MLFlowLogger": MLFlowWriter,
    "CSVLogger": lambda logger, folder: CSVWriter(Path(logger.log_dir)),
    "DummyLogger": lambda logger, folder: None,  # Lightning's, for fast_dev_run
}


def register_writer(logger_class_name: str, factory: WriterFactory) -> None:
    """Use ``factory`` for all loggers of a class, in this process.

    Args:
        logger_class_name: ``__name__`` of the logger class; subclasses are included. Classes are identified by their
            names because ``lightning.pytorch`` and ``pytorch_lightning`` each have their own. A name that is
            registered already gets the new factory.
        factory: Called with the logger and the folder of the report files (``<log_dir>/failures``); returns the writer.
    """
    _FACTORIES[logger_class_name] = factory


def writer_for(logger: Any, folder: Path) -> Writer | None:
    """Return the writer of a logger; None, with a warning, if it has none.

    A logger of no registered class gets the generic writer if it has ``log_image`` or ``log_table``.

    Args:
        logger: A logger of the Trainer.
        folder: The folder of the report files.
    """
    for base in type(logger).__mro__:
        if base.__name__ in _FACTORIES:
            return _FACTORIES[base.__name__](logger, folder)
    if can_log(logger, "log_image") or can_log(logger, "log_table"):
        return GenericWriter(logger)
    name = type(logger).__name__
    warnings.warn(
        f"FailureModes has no writer for {name}, which gets scalars only; the report and its pictures are in {folder}. "
        f'Remedy: lightning_failures.writers.register_writer("{name}", ...).',
        stacklevel=3,
    )
    return None


def writers_for(loggers: Iterable[Any], folder: Path, *, feature_names: Path | None = None) -> list[Writer]:
    """Return the writers of a run: that of the report files, then one for each logger that has one.

    Args:
        loggers: The loggers of the Trainer. Scalars reach all of them through Lightning.
        folder: The folder of the report files.
        feature_names: The YAML file in which people name features; by default ``features.yaml`` in ``folder``.
    """
    of_loggers = [writer_for(logger, folder) for logger in loggers]
    return [FileWriter(folder, feature_names), *(writer for writer in of_loggers if writer is not None)]
