"""What the callback adds to an epoch of the demo, with a warm cache, and where the time goes.

    python benchmarks/overhead.py --output benchmarks/results/overhead.json

The demo's data, model, options and logger, trained with and without ``FailureModes`` in turn. The first run, which
fills the cache and compiles what is compiled once a machine, is told apart. An epoch is training and validation on
4,000 images each. Shares are of an epoch with the callback, of its wall time and of its CPU time (which a busy machine
stretches less unevenly); stages are timed inside the same runs.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_failures import FailureModes, analysis, callback
from lightning_failures.adapters import explaining
from lightning_failures.adapters.collector import Collector
from lightning_failures.digits import ColouredDigitsDataModule, DigitClassifier

STAGES = {
    "grade batches": (Collector, "grade"),
    "hash and look up": (Collector, "embed"),
    "gather": (Collector, "grades"),
    "read embeddings": (Collector, "embeddings"),
    "analyse": (explaining, "analyse"),
    "  directions": (analysis, "fit_failure_directions"),
    "  captions": (analysis, "_with_captions"),
    "  trees": (analysis, "_grow_trees"),
    "draw pictures": (explaining, "draw_pictures"),
    "write to sinks": (explaining, "write_all"),
    "log scalars": (callback, "log_values"),
}
HOOKS = (
    *("on_validation_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end"),
    *("setup", "on_fit_start", "on_sanity_check_start", "on_train_start"),
)


Epoch = dict[str, np.ndarray]
"""Seconds, wall and CPU, of the whole and of each stage."""


def now() -> np.ndarray:
    """Wall and CPU clock."""
    return np.array([time.perf_counter(), time.process_time()])


class Clock(L.Callback):
    """Times each epoch, and within it each stage."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self.stages: Epoch = defaultdict(lambda: np.zeros(2))
        self._start: np.ndarray | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An epoch ends where the next one starts."""
        self._close()
        self.stages.clear()
        self._start = now()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """So does the last one."""
        self._close()

    def _close(self) -> None:
        if self._start is not None:
            self.epochs.append({"epoch": now() - self._start} | self.stages)


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


def train(folder: Path, *, epochs: int, analysed: bool) -> list[Epoch]:
    """Train as the demo does; the times of each epoch."""
    L.seed_everything(0, verbose=False)
    clock = Clock()
    options: dict[str, Any] = {"encoder": "embedded:digits", "robust_encoder": "embedded:digits", "captions": "digits"}
    failures = [FailureModes(**options, cache_folder=folder / "cache", on_error="raise")] if analysed else []
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=TensorBoardLogger(folder, name="coloured_digits"),
        callbacks=[clock, *failures],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    with stopwatches(clock):
        trainer.fit(DigitClassifier(), datamodule=ColouredDigitsDataModule())
    return clock.epochs


def main() -> None:
    """Train in turn, print the shares, write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6, help="the demo's own number: pictures come with the last two")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*", FutureWarning)
    epochs = arguments.epochs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = train(folder, epochs=1, analysed=True)[0]
        runs: dict[bool, list[list[Epoch]]] = {True: [], False: []}
        for number in range(arguments.rounds):
            for analysed in (number % 2 == 0, number % 2 == 1):
                runs[analysed].append(train(folder, epochs=epochs, analysed=analysed))

    seconds = {kind: np.array([[row["epoch"] for row in run] for run in found]) for kind, found in runs.items()}
    added = 1 - seconds[False].sum(axis=1) / seconds[True].sum(axis=1)  # (rounds, 2): wall, CPU
    print(f"{arguments.rounds} x {epochs} epochs with the callback and as many without, in turn; wall time, CPU time")
    for i, kind in enumerate(("wall", "CPU")):
        middle, low, high = np.median(added[:, i]), added[:, i].min(), added[:, i].max()
        print(f"  added by the callback, {kind} time: {middle:.1%} ({low:.1%} to {high:.1%})")
    rows = [row for run in runs[True] for row in run]
    drawn = [row for row in rows if "draw pictures" in row]
    undrawn = [row for row in rows if "draw pictures" not in row]
    names = list(dict.fromkeys(name for row in rows for name in row if name != "epoch"))
    shares = {}
    for told, some in (("without pictures", undrawn), ("with pictures", drawn)):
        if some:
            shares[told] = {n: np.array([row.get(n, np.zeros(2)) / row["epoch"] for row in some]) for n in names}
            print(f"share of an epoch {told}, median (wall, CPU):")
            for name, values in shares[told].items():
                print("  {:<18}{:>8.2%}{:>8.2%}".format(name, *np.median(values, axis=0)))
    once = {name: values / np.median(seconds[True], axis=(0, 1)) for name, values in first.items()}
    print("the first epoch of all, cold cache and compilation: {:.1f} x ({:.1f} x) a usual one".format(*once["epoch"]))
    if arguments.output:
        result = {"added": added, "shares": shares, "first_epoch": once, "with": runs[True], "without": runs[False]}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1, default=lambda x: np.round(x, 4).tolist()) + "\n")


if __name__ == "__main__":
    main()
