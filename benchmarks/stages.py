"""Time of the stages of an analysis within a training, for the benchmarks that measure it."""

from __future__ import annotations

import functools
import importlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch

from lightning_failures import FailureModes
from lightning_failures.analysis import fits
from lightning_failures.report.html import library
from lightning_failures.trainer import epoch_end as explaining
from lightning_failures.trainer.evaluation_pass import EmbeddingPass
from lightning_failures.trainer.grader import Grader
from lightning_failures.trainer.metric_keys import KeyLog
from lightning_failures.trainer.pictures import builder as drawing
from lightning_failures.writers import FileWriter, TensorBoardWriter, files

# a module whose package has a function of the same name
analysis = importlib.import_module("lightning_failures.analysis.analyse")

STAGES = {
    "grade batches": (Grader, "grade"),
    "hash and look up": (EmbeddingPass, "embed"),
    "gather": (Grader, "grades"),
    "read embeddings": (EmbeddingPass, "embeddings_of"),
    "analyse": (explaining, "analyse"),
    "  directions": (fits, "_fit_directions"),
    "  captions": (analysis, "caption_classes"),
    "  trees": (fits, "grow_trees"),
    "diary": (explaining, "keep_diary"),
    "write to sinks": (explaining.AnalysisRunner, "_write"),
    "log scalars": (KeyLog, "log"),
    "pictures": (explaining.AnalysisRunner, "draw"),
    "  drawn": (drawing, "draw_gallery"),
    "  CV scores of chance": (drawing, "add_null_cv_scores"),
    "  files, with HTML": (FileWriter, "show"),
    "    HTML": (files, "write_html"),
    "  Vega, beside all that": (library, "_library"),
    "  TensorBoard": (TensorBoardWriter, "show"),
}
HOOKS = (
    *("on_validation_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end"),
    *("setup", "on_fit_start", "on_sanity_check_start", "on_train_start"),
)


Epoch = dict[str, np.ndarray]
"""Seconds, wall and CPU, of the whole and of each stage."""


def now() -> np.ndarray:
    """Return the wall and the CPU clock; a GPU first finishes what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


class Clock(L.Callback):
    """Times each epoch and its stages; at the end ``stages`` holds the times after the last epoch."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.stages: Epoch = defaultdict(lambda: np.zeros(2))
        self._start: np.ndarray | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the end of the previous epoch."""
        self._close()
        self._start = now()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the end of the last epoch."""
        self._close()

    def _close(self) -> None:
        if self._start is not None:
            self.epochs.append({"epoch": now() - self._start} | self.stages)
        self.stages.clear()


@contextmanager
def stopwatches(clock: Clock) -> Iterator[None]:
    """Time the stages, and all hooks of the callback together."""

    def timed(function: Any, name: str) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = function(*args, **kwargs)
            clock.stages[name] = clock.stages[name] + now() - start
            return result

        return wrapper

    with ExitStack() as stack:
        for name, (owner, attribute) in STAGES.items():
            stack.enter_context(patch.object(owner, attribute, timed(getattr(owner, attribute), name)))
        for hook in HOOKS:
            stack.enter_context(patch.object(FailureModes, hook, timed(getattr(FailureModes, hook), "callback")))
        yield
